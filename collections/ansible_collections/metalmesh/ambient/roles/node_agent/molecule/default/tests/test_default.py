"""The node has joined the mesh and keeps its network."""

from __future__ import annotations

from tests.support.roles import assert_file, assert_service, get, get_json, properties

UNIT = "metalmesh-node.service"
STATE = "/var/lib/metalmesh/node"


def test_service_is_supervised_and_sandboxed(host):
    """DESIGN section 2: root with bounded capabilities, exposure at most 3.0."""
    assert_service(host, UNIT, exposure_at_most=3.0)
    state = properties(host, UNIT, "ProtectSystem", "NoNewPrivileges", "CapabilityBoundingSet")
    assert state["ProtectSystem"] == "strict"
    assert state["NoNewPrivileges"] == "yes"
    assert "cap_sys_ptrace" not in state["CapabilityBoundingSet"]


def test_node_has_joined_with_a_token_that_is_used_up(host):
    """The one-time token was handed over, used and removed; what remains is the node's own."""
    assert not host.file(f"{STATE}/join-token").exists
    assert_file(host, f"{STATE}/token", user="root", group="metalmesh", mode=0o640)
    unused = host.check_output(
        "runuser -u metalmesh-controlplane -- metalmesh token list --output json"
    )
    assert unused == "[]"


def test_only_the_ztunnel_can_use_the_token_and_the_socket(host):
    """The ztunnel's unit has the group of the token; nobody else does."""
    assert host.run(f"runuser -u nobody -- cat {STATE}/token").rc != 0
    allowed = f"runuser -u metalmesh-ztunnel -G metalmesh -- cat {STATE}/token"
    assert host.run(allowed).rc == 0
    socket = host.file("/run/ztunnel/ztunnel.sock")
    assert socket.is_socket
    assert socket.group == "metalmesh-ztunnel"


def test_control_plane_knows_the_node(host):
    """Other nodes route the workloads of this one by its addresses."""
    node = host.check_output("cat /var/lib/metalmesh/store/Node/_cluster/node1.yaml")
    assert "10.244.9.0/24" in node
    assert "InternalIP" in node


def test_agent_is_ready_and_answers_names(host):
    """The machine's own resolver asks the agent first."""
    assert get(host, "http://127.0.0.1:15016/healthz/ready")[0] == 200
    resolver = host.file("/etc/resolv.conf").content_string
    assert "nameserver 169.254.20.10" in resolver
    assert host.file("/etc/metalmesh/resolv.conf").exists
    assert ("169.254.20.10", 53) in _udp_listeners(host)


def test_directories_of_workloads_are_there(host):
    """Only root says what runs in the mesh."""
    directory = host.file("/etc/metalmesh/workloads")
    assert (directory.user, directory.mode) == ("root", 0o755)
    assert_file(host, "/etc/metalmesh/node.yaml", user="root", group="root", mode=0o644)


def test_control_plane_serves_the_agent(host):
    """The agent subscribes to what concerns its node."""
    assert "node1" in str(get_json(host, "http://127.0.0.1:15014/debug/syncz"))


def _udp_listeners(host):
    lines = host.check_output("ss -H -l -u -n").splitlines()
    endpoints = (line.split()[3].rpartition(":") for line in lines)
    return {(address.strip("[]"), int(port)) for address, _, port in endpoints}
