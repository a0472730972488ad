"""Declared workloads run where they were declared; the application moved in by itself."""

from __future__ import annotations

import yaml

from tests.support.roles import get, ports, properties
from tests.support.waits import WAITS, wait_until

STORE = "/var/lib/metalmesh/store"


def test_specs_and_store_say_the_same(host):
    """One WorkloadEntry, in two places."""
    spec = host.file("/etc/metalmesh/workloads/demo-server.yaml").content_string
    stored = host.file(f"{STORE}/WorkloadEntry/demo/server.yaml").content_string
    assert spec.split("\n", 1)[1] == stored.split("\n", 1)[1]
    assert "address: 10.244.9.11" in spec
    assert host.file(f"{STORE}/ServiceAccount/demo/server.yaml").exists
    assert host.file(f"{STORE}/Namespace/_cluster/demo.yaml").contains("ambient")


def test_namespaces_run_and_will_after_a_boot(host):
    """Redirection is in force before the application starts, at boot as well."""
    for name in ("demo-client", "demo-server"):
        unit = host.service(f"metalmesh-netns@{name}.service")
        assert unit.is_running
        assert unit.is_enabled


def test_application_runs_inside(host):
    """It was running outside before; the drop-in moved it and it was restarted."""
    assert 8080 not in ports(host)
    assert 8080 in ports(host, "demo-server")
    state = properties(host, "demo-server.service", "NetworkNamespacePath", "BindsTo")
    assert state["NetworkNamespacePath"] == "/run/netns/demo-server"
    assert state["BindsTo"] == "metalmesh-netns@demo-server.service"


def test_names_inside_are_asked_of_the_agent(host):
    """In the workload's own namespace first."""
    inside = host.check_output("ip netns exec demo-client cat /etc/resolv.conf")
    assert "nameserver 169.254.20.10" in inside
    assert "search demo.svc.cluster.local" in inside


def test_traffic_between_workloads_is_hbone(host):
    """The server is reached, and its ztunnel saw the client's identity."""

    def served():
        return get(host, "http://10.244.9.11:8080/", "demo-client")[0] == 200

    wait_until(served, WAITS["workload"], what="demo-client reaches demo-server")
    journal = host.check_output("journalctl -u metalmesh-ztunnel -o cat -n 50")
    inbound = [line for line in journal.splitlines() if 'direction="inbound"' in line]
    assert any(
        'src.identity="spiffe://cluster.local/ns/demo/sa/client"' in line for line in inbound
    )


def test_probe_runs_inside_as_nobody_in_particular(host):
    """A command sees the workload's own sockets, and its result decides."""

    def counted(result):
        metrics = get(host, "http://127.0.0.1:15016/metrics")[1]
        return any(
            line.startswith("metalmesh_node_probe_total") and f'result="{result}"' in line
            for line in metrics.splitlines()
        )

    wait_until(lambda: counted("succeeded"), WAITS["service"], what="a good result")
    unit = host.service("metalmesh-drain@demo-server.service")
    assert unit.is_running
    host.run("systemctl stop demo-server.service")
    assert host.file("/run/metalmesh/node/drained/demo-server").exists
    host.run("systemctl start demo-server.service")
    wait_until(
        lambda: not host.file("/run/metalmesh/node/drained/demo-server").exists,
        WAITS["service"],
        what="announced again",
    )


def test_service_of_the_machine_itself_is_in_the_mesh(host):
    """It stays where it is; its clients come through HBONE, ssh (which asks this) does not."""
    spec = yaml.safe_load(host.file("/etc/metalmesh/workloads/host.yaml").content_string)
    address = spec["spec"]["address"]
    state = properties(host, "demo-metal.service", "NetworkNamespacePath", "BindsTo")
    assert state["NetworkNamespacePath"] == ""
    assert state["BindsTo"] == "metalmesh-netns@host.service"
    assert {8090, 8091} <= set(ports(host))

    def served():
        return get(host, f"http://{address}:8090/", "demo-client")[0] == 200

    wait_until(served, WAITS["workload"], what="demo-client reaches demo-metal")
    journal = host.check_output("journalctl -u metalmesh-ztunnel -o cat -n 50")
    inbound = [line for line in journal.splitlines() if 'direction="inbound"' in line]
    assert any(
        'src.identity="spiffe://cluster.local/ns/demo/sa/client"' in line
        and 'dst.workload="metal"' in line
        for line in inbound
    )


def test_its_own_connections_have_its_identity(host):
    """Whatever the machine connects to, except what is excluded."""
    assert get(host, "http://10.244.9.11:8080/")[0] == 200
    journal = host.check_output("journalctl -u metalmesh-ztunnel -o cat -n 50")
    assert any(
        'src.identity="spiffe://cluster.local/ns/demo/sa/metal"' in line
        and 'dst.workload="server"' in line
        for line in journal.splitlines()
    )
