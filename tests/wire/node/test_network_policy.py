"""NetworkPolicy by packets: both directions, both families, and what is closed while unknown."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address, ip_network

import pytest

from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from tests.support.mesh_node import MeshNode, fetch, mesh_node, serving
from tests.support.netns import Netns

A4, A6 = "10.244.9.11", "fd44:9::11"
B4, B6 = "10.244.9.12", "fd44:9::12"
OUT4, OUT6 = "198.18.0.2", "fd18::2"
OPEN = "hello"
DROPPED = "TimeoutError"
PLAIN = {"istio.io/dataplane-mode": "none"}
#: a dropped packet shows by silence; a retransmission comes after one second
SILENCE_SECONDS = 0.6


def selected(node: MeshNode, name: str) -> SelectedWorkload:
    addresses = {"a": (A4, A6), "b": (B4, B6)}[name]
    uid = f"Kubernetes/networking.istio.io/WorkloadEntry/{node.unique}/{name}"
    return SelectedWorkload(uid, tuple(map(ip_address, addresses)))


def policy(node: MeshNode, name: str, **fields) -> CompiledNetworkPolicy:
    return CompiledNetworkPolicy(
        name=f"p-{name}",
        namespace=node.unique,
        selected=(selected(node, name),),
        ingress="ingress_rules" in fields,
        egress="egress_rules" in fields,
        **fields,
    )


def rule(
    *cidrs: str, ports: tuple[int, ...] | None = None, but: tuple[str, ...] = ()
) -> PolicyRule:
    return PolicyRule(
        peers=tuple(Peer(ip_network(item), tuple(map(ip_network, but))) for item in cidrs) or None,
        ports=None if ports is None else tuple(PolicyPort(Protocol.TCP, item) for item in ports),
    )


@pytest.fixture(scope="module")
def node():
    """Two uncaptured workloads and a client outside, each serving 80 and 81."""
    with mesh_node() as made, contextlib.ExitStack() as stack:
        made.declare("a", A4, A6, labels=PLAIN)
        made.declare("b", B4, B6, labels=PLAIN)
        made.up("a")
        made.up("b")
        for place in (made.workload("a"), made.workload("b"), made.outside, made.netns):
            for port in (80, 81):
                stack.enter_context(
                    serving(
                        lambda place=place, port=port: place.do(lambda: _listen(port)),
                        lambda peer: OPEN.encode(),
                    )
                )
        yield made


def _listen(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def apply(node: MeshNode, *policies: CompiledNetworkPolicy, known: str = "ab") -> None:
    """As if the control plane had sent them; any ``up`` puts them in force."""
    node.state.save_policies(_state(node, policies, known))
    node.up("a")


def _state(node, policies, known):
    from metalmesh.node.state import PolicyState

    return PolicyState(tuple(policies), frozenset(selected(node, name).uid for name in known))


def reach(client: Netns, address: str, port: int = 80) -> str:
    return fetch(client, address, port, timeout_seconds=SILENCE_SECONDS)


PAIRS = pytest.mark.parametrize(("to_a", "to_b", "to_out"), [(A4, B4, OUT4), (A6, B6, OUT6)])


@PAIRS
def test_without_policies_everybody_talks(node, to_a, to_b, to_out):
    apply(node)
    assert reach(node.outside, to_a) == OPEN
    assert reach(node.workload("a"), to_b) == OPEN
    assert reach(node.workload("a"), to_out) == OPEN


@PAIRS
def test_ingress_admits_its_peers_and_ports_only(node, to_a, to_b, to_out):
    apply(node, policy(node, "a", ingress_rules=(rule(f"{B4}/32", f"{B6}/128", ports=(80,)),)))
    assert reach(node.workload("b"), to_a, 80) == OPEN
    assert reach(node.workload("b"), to_a, 81) == DROPPED
    assert reach(node.outside, to_a, 80) == DROPPED
    # the other direction and the other workload are open
    assert reach(node.workload("a"), to_out) == OPEN
    assert reach(node.outside, to_b) == OPEN


@PAIRS
def test_egress_admits_its_peers_only(node, to_a, to_b, to_out):
    apply(node, policy(node, "a", egress_rules=(rule("0.0.0.0/0", "::/0", ports=(81,)),)))
    assert reach(node.workload("a"), to_out, 81) == OPEN
    assert reach(node.workload("a"), to_out, 80) == DROPPED
    assert reach(node.workload("a"), to_b, 80) == DROPPED
    assert reach(node.outside, to_a, 80) == OPEN


@PAIRS
def test_egress_of_one_does_not_open_ingress_of_the_other(node, to_a, to_b, to_out):
    apply(
        node,
        policy(node, "a", egress_rules=(rule(),)),
        policy(node, "b", ingress_rules=(rule(f"{OUT4}/32", f"{OUT6}/128"),)),
    )
    assert reach(node.workload("a"), to_b) == DROPPED
    assert reach(node.outside, to_b) == OPEN


def test_exceptions_of_a_range_are_not_admitted(node):
    apply(node, policy(node, "a", ingress_rules=(rule("0.0.0.0/0", but=(f"{B4}/32",)),)))
    assert reach(node.outside, A4) == OPEN
    assert reach(node.workload("b"), A4) == DROPPED


def test_no_rules_admit_nothing_but_the_node(node):
    apply(node, policy(node, "a", ingress_rules=(), egress_rules=()))
    assert reach(node.outside, A4) == DROPPED
    assert reach(node.workload("a"), OUT4) == DROPPED
    # Kubernetes: a workload and its own node always reach each other
    assert reach(node.netns, A4) == OPEN
    assert reach(node.workload("a"), "198.18.0.1") == OPEN


def test_icmp_passes_a_rule_without_ports_only(node):
    apply(node, policy(node, "a", ingress_rules=(rule(ports=(80,)),)))
    assert not _ping(node.outside, A4)
    apply(node, policy(node, "a", ingress_rules=(rule(f"{OUT4}/32"),)))
    assert _ping(node.outside, A4)


def _ping(client: Netns, address: str) -> bool:
    """One echo request over a raw socket."""
    request = bytes.fromhex("0800f7fd00010001")

    def exchange() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.settimeout(SILENCE_SECONDS)
            sock.sendto(request, (address, 0))
            try:
                while True:
                    packet, (source, _) = sock.recvfrom(1024)
                    if source == address and packet[20] == 0:
                        return True
            except TimeoutError:
                return False

    return client.do(exchange)


def test_established_connection_outlives_the_policy_that_admitted_it(node):
    apply(node)
    with node.outside.connect(A4, 80) as sock:
        apply(node, policy(node, "a", ingress_rules=()))
        sock.settimeout(SILENCE_SECONDS)
        assert sock.recv(100) == OPEN.encode()


def test_refusals_are_counted_under_the_names_of_the_policies(node):
    apply(node, policy(node, "a", ingress_rules=()))
    reach(node.outside, A4)
    refusing = [
        line
        for line in node.nft("list", "table", "inet", "metalmesh-policy").splitlines()
        if f"ingress refused by {node.unique}/p-a" in line
    ]
    assert len(refusing) == 1
    assert "packets 0 " not in refusing[0]


def test_workload_the_control_plane_does_not_know_is_closed(node):
    apply(node, known="b")
    assert reach(node.outside, A4) == DROPPED
    assert reach(node.workload("a"), OUT4) == DROPPED
    assert reach(node.outside, B4) == OPEN


def test_sender_cannot_use_an_address_of_another(node):
    """A policy by address is worth something only when addresses are true."""
    apply(node, policy(node, "a", ingress_rules=(rule("10.99.99.99/32"),)))
    spoofer = node.workload("b")
    spoofer.run("ip", "addr", "add", "10.99.99.99/32", "dev", "lo")
    try:

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("10.99.99.99", 0))
                sock.sendto(b"x", (A4, 9))

        spoofer.do(send)
    finally:
        spoofer.run("ip", "addr", "del", "10.99.99.99/32", "dev", "lo")
    chain = node.nft("list", "chain", "inet", "metalmesh-policy", "prerouting")
    bound = next(line for line in chain.splitlines() if "@bound-v4" in line)
    assert "packets 0 " not in bound


@PAIRS
def test_node_that_never_received_policies_is_closed(to_a, to_b, to_out):
    with mesh_node() as fresh:
        fresh.declare("a", A4, A6, labels=PLAIN)
        fresh.up("a")
        inside = fresh.workload("a")
        with serving(lambda: inside.do(lambda: _listen(80)), lambda peer: OPEN.encode()):
            assert reach(fresh.outside, to_a) == DROPPED
            assert reach(fresh.netns, to_a) == OPEN
            # and the twin: once policies have come, it is open
            fresh.state.save_policies(_state(fresh, (), "a"))
            fresh.up("a")
            assert reach(fresh.outside, to_a) == OPEN


def test_lost_policy_file_closes_the_node():
    with mesh_node() as fresh:
        fresh.know(fresh.declare("a", A4, labels=PLAIN))
        (fresh.directory / "state" / "network-policies.json").write_text("{")
        fresh.up("a")
        inside = fresh.workload("a")
        with serving(lambda: inside.do(lambda: _listen(80)), lambda peer: OPEN.encode()):
            assert reach(fresh.outside, A4) == DROPPED
