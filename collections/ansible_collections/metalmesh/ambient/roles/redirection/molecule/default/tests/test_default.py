"""A namespace is redirected before anything can run in it, with nothing of the mesh running."""

from __future__ import annotations

import pytest

from tests.support.roles import exposure, properties

NAME = "demo-probe"
UNIT = f"metalmesh-netns@{NAME}.service"
SPEC = f"/etc/metalmesh/workloads/{NAME}.yaml"
ENTRY = (
    "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry,"
    " metadata: {name: probe, namespace: demo, annotations: {ambient.metalmesh.io/node: node1}},"
    " spec: {address: 10.244.9.10, serviceAccount: probe}}"
)


@pytest.fixture(scope="module")
def namespace(host):
    """The namespace of a workload, made while agent and control plane are down."""
    host.check_output("systemctl stop metalmesh-node metalmesh-controlplane")
    host.check_output(f"echo '{ENTRY}' >{SPEC}")
    host.check_output(f"systemctl start {UNIT}")
    yield NAME
    host.check_output(f"systemctl stop {UNIT} && rm {SPEC}")
    host.check_output("systemctl start metalmesh-controlplane metalmesh-node")


def test_unit_waits_for_nothing_but_the_machine(host):
    """At boot it must not depend on the network, the agent or the control plane."""
    text = host.file("/etc/systemd/system/metalmesh-netns@.service").content_string
    assert "WantedBy=multi-user.target" in text
    assert "network-online" not in text
    assert "metalmesh-node.service" not in text


def test_namespace_has_its_address_and_its_rules(host, namespace):
    """Redirection is in force when the unit has started."""
    inside = f"ip netns exec {namespace}"
    assert "10.244.9.10" in host.check_output(f"{inside} ip -br address show eth0")
    rules = host.check_output(f"{inside} nft list ruleset")
    for port in (15001, 15006):
        assert f"redirect to :{port}" in rules
    assert "fwmark 0x111/0xfff lookup 100" in host.check_output(f"{inside} ip rule")
    assert "local default dev lo" in host.check_output(f"{inside} ip route show table 100")


def test_captured_connection_is_refused_rather_than_let_through(host, namespace):
    """Fail closed: without a ztunnel nothing leaves in plaintext."""
    done = host.run(f"ip netns exec {namespace} curl -s -m 3 http://10.77.255.1:80")
    assert done.rc == 7, "curl: connection refused"


@pytest.mark.usefixtures("namespace")
def test_machines_own_namespace_is_not_redirected(host):
    """Rules are in the namespace of the workload alone."""
    assert "redirect to :15001" not in host.check_output("nft list ruleset")


@pytest.mark.usefixtures("namespace")
def test_unit_is_bounded(host):
    """It mounts for the whole machine, so it is not contained; but it cannot gain privileges."""
    state = properties(host, UNIT, "NoNewPrivileges", "ActiveState", "CapabilityBoundingSet")
    assert state["NoNewPrivileges"] == "yes"
    assert state["ActiveState"] == "active"
    assert "cap_sys_module" not in state["CapabilityBoundingSet"]
    assert exposure(host, UNIT) < 8


@pytest.mark.usefixtures("namespace")
def test_stopping_leaves_nothing(host):
    """No namespace, no link; and it can come back."""
    host.check_output(f"systemctl stop {UNIT}")
    assert NAME not in host.check_output("ip netns list")
    assert "mmw" not in host.check_output("ip -br link")
    host.check_output(f"systemctl start {UNIT}")
    assert NAME in host.check_output("ip netns list")
