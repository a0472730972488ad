"""The node agent with the real control plane: joining, policies, routes, services, names.

The control plane runs in the client's namespace (198.18.0.2) of the node's fixture.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct

import pytest

from tests.support.mesh_node import DNS_ADDRESS, MeshNode, fetch, mesh_node, serving
from tests.support.netns import Netns
from tests.support.node_plane import ADDRESS as PLANE
from tests.support.node_plane import PLAIN, Plane
from tests.support.waits import WAITS, Wait, wait_until

A4, A6 = "10.244.9.11", "fd44:9::11"
B4 = "10.244.9.12"
VIP = "10.96.7.7"
#: a changed policy is in force within a second; the margin is this shared machine's
POLICY = Wait(3.0, "bound of 1 s on a machine of its own")
SILENCE_SECONDS = 0.6


@pytest.fixture(scope="module")
def joined():
    """A node that has joined, with workloads a and b, a service and a second node."""
    with mesh_node(xds_address=f"{PLANE}:15012") as node, contextlib.ExitStack() as stack:
        plane = Plane(node)
        stack.callback(plane.stop)
        plane.put(
            "Node",
            "node1",
            "v1",
            spec={"podCIDRs": ["10.244.9.0/24"]},
            status={"addresses": [{"type": "InternalIP", "address": "198.18.0.1"}]},
        )
        _put_node2(plane, "10.244.8.0/24", "fd44:8::/64")
        plane.place("a", A4, A6)
        plane.place("b", B4)
        _put_service(plane, node, "echo", VIP, {"port": 8000, "targetPort": 80})
        _put_service(plane, node, "headless", "None", {"port": 80})
        plane.start()
        (node.directory / "join-token").write_text(plane.join_token() + "\n")
        node.declare("a", A4, A6, labels=PLAIN)
        node.declare("b", B4, labels=PLAIN)
        node.up("a")
        node.up("b")
        node.start_agent()
        wait_until(lambda: node.debug()["networkPolicies"] is not None, WAITS["service"])
        wait_until(lambda: node.debug()["services"], WAITS["service"])
        for name in ("a", "b"):
            stack.enter_context(
                serving(lambda name=name: node.workload(name).do(_listen), lambda p: b"hello")
            )
        yield node, plane


def _put_service(
    plane: Plane, node: MeshNode, name: str, address: str, port: dict[str, int]
) -> None:
    plane.put(
        "Service",
        name,
        "v1",
        metadata={"namespace": node.unique},
        spec={"clusterIP": address, "selector": {"app": "a"}, "ports": [{"name": "http", **port}]},
    )


def _put_node2(plane: Plane, *networks: str) -> None:
    addresses = [{"type": "InternalIP", "address": item} for item in (PLANE, "fd18::2")]
    plane.put(
        "Node", "node2", "v1", spec={"podCIDRs": list(networks)}, status={"addresses": addresses}
    )


def _listen() -> socket.socket:
    return socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)


def reach(client: Netns, address: str, port: int = 80) -> str:
    return fetch(client, address, port, timeout_seconds=SILENCE_SECONDS)


def test_join_token_became_a_node_token_and_is_gone(joined):
    node, _ = joined
    assert (node.directory / "token").stat().st_mode & 0o777 == 0o640
    assert not (node.directory / "join-token").exists()
    assert node.metric("metalmesh_node_token_expiry_timestamp_seconds") > 0


def test_workloads_open_once_the_control_plane_knows_them(joined):
    node, _ = joined
    wait_until(lambda: reach(node.outside, A4) == "hello", WAITS["policy"])
    wait_until(lambda: reach(node.outside, B4) == "hello", WAITS["policy"])


def test_workload_that_is_not_placed_here_is_closed_and_named(joined):
    node, plane = joined
    workload = node.declare("stray", "10.244.9.99", labels=PLAIN)
    node.up("stray")
    with serving(lambda: node.workload("stray").do(_listen), lambda p: b"hello"):
        wait_until(lambda: "it stays closed" in node.log(), WAITS["policy"])
        assert workload.uid in node.log()
        assert reach(node.outside, "10.244.9.99") == "TimeoutError"
        plane.place("stray", "10.244.9.99")
        wait_until(lambda: reach(node.outside, "10.244.9.99") == "hello", WAITS["policy"])
    node.down("stray")
    node.withdraw("stray")
    plane.remove("WorkloadEntry", node.unique, "stray")


def test_policy_of_the_store_is_in_force_soon_and_gone_soon(joined):
    node, plane = joined
    wait_until(lambda: reach(node.outside, A4) == "hello", WAITS["policy"])
    plane.deny_ingress("a")
    wait_until(lambda: reach(node.outside, A4) == "TimeoutError", POLICY)
    assert reach(node.outside, B4) == "hello"
    plane.remove("NetworkPolicy", node.unique, "deny-a")
    wait_until(lambda: reach(node.outside, A4) == "hello", POLICY)


def test_routes_lead_to_the_other_nodes_workloads(joined):
    node, plane = joined
    wait_until(
        lambda: "10.244.8.0/24 via 198.18.0.2" in node.netns.run("ip", "route"), WAITS["policy"]
    )
    assert "fd44:8::/64 via fd18::2" in node.netns.run("ip", "-6", "route")
    assert "unreachable 10.244.9.0/24" in node.netns.run("ip", "route")
    _put_node2(plane, "10.244.7.0/24")
    wait_until(lambda: "10.244.7.0/24 via" in node.netns.run("ip", "route"), WAITS["policy"])
    assert "10.244.8.0/24" not in node.netns.run("ip", "route")
    plane.remove("Node", "_cluster", "node2")
    wait_until(lambda: "10.244.7.0/24" not in node.netns.run("ip", "route"), WAITS["policy"])
    _put_node2(plane, "10.244.8.0/24", "fd44:8::/64")


@pytest.mark.parametrize("client", ["workload", "itself", "node", "outside"])
def test_virtual_address_reaches_an_endpoint(joined, client):
    node, _ = joined
    places = {
        "workload": node.workload("b"),
        "itself": node.workload("a"),
        "node": node.netns,
        "outside": node.outside,
    }
    wait_until(lambda: reach(places[client], VIP, 8000) == "hello", WAITS["policy"])


def test_virtual_address_without_that_port_is_refused_at_once(joined):
    node, _ = joined
    for place in (node.workload("b"), node.netns, node.outside):
        assert reach(place, VIP, 8001) == "ConnectionRefusedError"
    assert reach(node.netns, "10.96.200.200", 80) == "ConnectionRefusedError"


def ask(client: Netns, name: str, kind: int = 1, *, tcp: bool = False) -> tuple[int, list[str]]:
    """Response code and addresses of one query."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack("!6H", 77, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)

    def exchange() -> bytes:
        kind_of_socket = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind_of_socket) as sock:
            sock.settimeout(8)
            sock.connect((DNS_ADDRESS, 53))
            sock.sendall(struct.pack("!H", len(query)) + query if tcp else query)
            reply = sock.recv(4096)
            return reply[2:] if tcp else reply

    reply = client.do(exchange)
    identifier, flags, _, answers, _, _ = struct.unpack("!6H", reply[:12])
    assert identifier == 77
    at, found = len(query), []
    for _ in range(answers):
        while reply[at] and reply[at] & 0xC0 != 0xC0:
            at += 1 + reply[at]
        at += 2 if reply[at] & 0xC0 == 0xC0 else 1
        record, _, ttl, length = struct.unpack("!HHIH", reply[at : at + 10])
        data = reply[at + 10 : at + 10 + length]
        if record in (1, 28):
            assert ttl == 30
            found.append(str(ipaddress.ip_address(data)))
        at += 10 + length
    return flags & 0xF, found


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_names_of_services_are_answered_by_the_clients_namespace(joined, tcp):
    node, _ = joined
    client = node.workload("b")
    for name in ("echo", f"echo.{node.unique}", f"echo.{node.unique}.svc.cluster.local"):
        assert ask(client, name, tcp=tcp) == (0, [VIP]), name
    assert ask(client, f"headless.{node.unique}.svc", tcp=tcp) == (0, [A4])
    assert ask(client, f"headless.{node.unique}.svc", 28, tcp=tcp) == (0, [A6])
    assert ask(client, "echo", 28, tcp=tcp) == (0, [])
    assert ask(client, "none.svc.cluster.local", tcp=tcp) == (3, [])
    # the node itself has no namespace
    assert ask(node.netns, f"echo.{node.unique}", tcp=tcp) == (0, [VIP])


def test_restarted_agent_keeps_everything_without_the_control_plane(joined):
    node, plane = joined
    plane.deny_ingress("b")
    wait_until(lambda: reach(node.outside, B4) == "TimeoutError", POLICY)
    wait_until(lambda: (node.directory / "state" / "xds.pb").exists(), WAITS["policy"])
    before = [node.nft("-s", "list", "ruleset"), node.netns.run("ip", "route")]
    plane.stop()
    node.stop_agents()
    node.start_agent()
    assert [node.nft("-s", "list", "ruleset"), node.netns.run("ip", "route")] == before
    assert reach(node.outside, A4) == "hello"
    assert reach(node.outside, B4) == "TimeoutError"
    assert ask(node.workload("b"), "echo") == (0, [VIP])
    # and after a reboot, when there is nothing but the state directory
    node.stop_agents()
    node.down("b")
    node.nft("flush", "ruleset")
    assert "metalmesh-policy" in node.up("b")
    with serving(lambda: node.workload("b").do(_listen), lambda p: b"hello"):
        assert reach(node.outside, B4) == "TimeoutError"
        assert reach(node.netns, B4) == "hello"


@pytest.fixture
def alone():
    with mesh_node(xds_address=f"{PLANE}:15012") as node, contextlib.ExitStack() as stack:
        plane = Plane(node)
        stack.callback(plane.stop)
        plane.put(
            "Node",
            "node1",
            "v1",
            spec={"podCIDRs": ["10.244.9.0/24"]},
            status={"addresses": [{"type": "InternalIP", "address": "198.18.0.1"}]},
        )
        yield node, plane


@pytest.mark.parametrize("wrong", ["made up", "another node's", "used before"])
def test_wrong_join_token_is_refused_with_a_clear_message(alone, wrong):
    node, plane = alone
    plane.start()
    token = {
        "made up": "0123456789abcdef.nonsense",
        "another node's": plane.join_token("node2"),
        "used before": plane.join_token(),
    }[wrong]
    (node.directory / "join-token").write_text(token)
    node.start_agent()
    if wrong == "used before":
        wait_until(lambda: (node.directory / "token").exists(), WAITS["service"])
        node.stop_agents()
        (node.directory / "token").unlink()
        (node.directory / "join-token").write_text(token)
        node.start_agent()
    wait_until(lambda: "join token refused" in node.log(), WAITS["service"])
    assert token not in node.log()
    assert not (node.directory / "token").exists()
    # a good one is taken without a restart
    (node.directory / "join-token").write_text(plane.join_token())
    wait_until(lambda: (node.directory / "token").exists(), Wait(40.0, "retries are rare by then"))


def test_local_duties_need_no_control_plane(alone):
    node, _ = alone
    node.declare("a", A4)
    node.up("a")
    node.start_agent()
    assert "no node token" in node.log() or wait_until(
        lambda: "no node token" in node.log(), WAITS["service"]
    )
    assert node.get("/healthz/ready") == (200, "ready\n")
    node.workload("a").run("nft", "flush", "ruleset")
    wait_until(lambda: "15001" in node.nft("list", "ruleset", inside="a"), WAITS["drift"])


def test_cleanup_leaves_the_node_as_it_was(alone):
    node, _ = alone
    before = [
        node.nft("list", "ruleset"),
        node.netns.run("ip", "addr", "show", "lo"),
        node.netns.run("ip", "route"),
    ]
    node.declare("a", A4)
    node.up("a")
    node.start_agent()
    node.stop_agents()
    config = ["--config", str(node.config_path)]
    refused = node.command("cleanup", *config)
    assert refused.returncode == 1
    assert f"{node.unique}-a" in refused.stderr
    node.down("a")
    assert node.command("cleanup", *config).returncode == 0
    after = [
        node.nft("list", "ruleset"),
        node.netns.run("ip", "addr", "show", "lo"),
        node.netns.run("ip", "route"),
    ]
    assert [after[0], after[2]] == [before[0], before[2]]
    assert DNS_ADDRESS not in after[1]
    assert node.command("cleanup", *config).stdout == "node1: unchanged\n"
