"""The L4 proxy runs contained, is ready, and comes back by itself."""

from __future__ import annotations

import time

from tests.support.roles import assert_file, assert_service, get, listeners, properties

UNIT = "metalmesh-ztunnel.service"
READY = "http://127.0.0.1:15021/healthz/ready"


def test_service_is_supervised_and_sandboxed(host):
    """DESIGN section 2: own user, three capabilities, exposure at most 3.0."""
    assert_service(host, UNIT, exposure_at_most=3.0)
    state = properties(host, UNIT, "User", "CapabilityBoundingSet", "FileDescriptorStoreMax")
    assert state["User"] == "metalmesh-ztunnel"
    capabilities = set(state["CapabilityBoundingSet"].split())
    assert capabilities == {"cap_net_admin", "cap_net_raw", "cap_sys_admin"}
    assert int(state["FileDescriptorStoreMax"]) > 0


def test_it_is_ready_and_listens_where_it_should(host):
    """Admin on loopback alone; the ports of workloads not in the machine's own namespace."""
    assert get(host, READY)[0] == 200
    found = listeners(host)
    ports = {port for _, port in found}
    assert {15020, 15021} <= ports
    assert not {15001, 15006, 15008} & ports
    assert {address for address, port in found if port == 15000} <= {"127.0.0.1", "::1"}


def test_processes_have_no_key_on_disk(host):
    """Private keys live in memory; what is below the state directory holds none."""
    assert host.run("grep -rl 'PRIVATE KEY' /var/lib/metalmesh/ztunnel").stdout == ""


def test_configuration_is_not_a_secret_and_not_writable(host):
    """Only root decides."""
    assert_file(host, "/etc/metalmesh/ztunnel.yaml", user="root", group="root", mode=0o644)


def test_metrics_are_served(host):
    """Istio's names, so that dashboards work."""
    status, body = get(host, "http://127.0.0.1:15020/metrics")
    assert status == 200
    assert "istio_build" in body


def test_reload_replaces_the_processes(host):
    """An upgrade or a changed setting: a new main, new workers; the unit never fails."""
    before = properties(host, UNIT, "MainPID")["MainPID"]
    host.check_output(f"systemctl reload {UNIT}")
    deadline = time.monotonic() + 5
    while (
        properties(host, UNIT, "MainPID")["MainPID"] in (before, "0") or get(host, READY)[0] != 200
    ):
        assert time.monotonic() < deadline, host.run(f"journalctl -n 40 -u {UNIT}").stdout
    while (
        len(
            host.check_output(
                f"systemctl show -p ControlGroup --value {UNIT} | "
                "xargs -I{} cat /sys/fs/cgroup{}/cgroup.procs"
            ).split()
        )
        != 3
    ):
        assert time.monotonic() < deadline, "workers without connections have nothing to finish"


def test_killed_service_is_back_within_two_seconds(host):
    """The bound of the project for a crash."""
    before = properties(host, UNIT, "MainPID")["MainPID"]
    host.check_output(f"systemctl kill -s KILL {UNIT}")
    deadline = time.monotonic() + 5
    started_at = time.monotonic()
    while (
        properties(host, UNIT, "MainPID")["MainPID"] in (before, "0") or get(host, READY)[0] != 200
    ):
        assert time.monotonic() < deadline, host.run(f"journalctl -n 40 -u {UNIT}").stdout
    assert time.monotonic() - started_at < 2.5
    # The next look at the unit starts from zero again.
    host.check_output(f"systemctl reset-failed {UNIT} && systemctl restart {UNIT}")
