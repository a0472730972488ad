"""Our own types on the wire: nodes and compiled NetworkPolicies."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import ProtocolError
from metalmesh.model.identity import SignedBy
from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from metalmesh.model.node import Node
from metalmesh.policy.network_policy import network_policy_from_dict, network_policy_to_dict
from metalmesh.proto import node_pb2 as pb
from metalmesh.xds.node import (
    decode_authority,
    decode_network_policy,
    decode_node,
    encode_authority,
    encode_network_policy,
    encode_node,
)

IP = ipaddress.ip_address
NET = ipaddress.ip_network

PEERS = st.builds(
    Peer,
    st.sampled_from([NET("10.0.0.0/8"), NET("fd00::/16"), NET("192.0.2.7/32")]),
    st.lists(st.sampled_from([NET("10.1.0.0/16"), NET("fd00:1::/32")]), max_size=2).map(tuple),
)
PORTS = st.one_of(
    st.builds(PolicyPort, st.sampled_from(Protocol)),
    st.builds(PolicyPort, st.sampled_from(Protocol), st.integers(1, 1000), st.just(0)),
    st.builds(PolicyPort, st.sampled_from(Protocol), st.integers(1, 99), st.integers(99, 200)),
)
RULES = st.builds(
    PolicyRule,
    peers=st.none() | st.lists(PEERS, max_size=2).map(tuple),
    ports=st.none() | st.lists(PORTS, max_size=2).map(tuple),
    only_uids=st.frozensets(st.text(min_size=1, max_size=5), max_size=2),
)
POLICIES = st.builds(
    CompiledNetworkPolicy,
    name=st.text(min_size=1, max_size=5),
    namespace=st.text(min_size=1, max_size=5),
    selected=st.lists(
        st.builds(
            SelectedWorkload,
            st.text(min_size=1, max_size=5),
            st.just((IP("10.0.0.1"), IP("fd00::1"))),
        ),
        max_size=2,
    ).map(tuple),
    ingress=st.booleans(),
    egress=st.booleans(),
    ingress_rules=st.lists(RULES, max_size=2).map(tuple),
    egress_rules=st.lists(RULES, max_size=2).map(tuple),
)


@given(POLICIES)
def test_any_network_policy_survives_wire_and_json(policy: CompiledNetworkPolicy) -> None:
    """ "Any" (None) and "none" (an empty list) must stay apart."""
    assert decode_network_policy(encode_network_policy(policy), policy.key) == policy
    assert network_policy_from_dict(network_policy_to_dict(policy)) == policy


def test_node_survives_the_wire() -> None:
    node = Node(
        name="node1",
        addresses=(IP("10.77.0.11"), IP("fd77::11")),
        pod_cidrs=(NET("10.244.1.0/24"), NET("fd00:10:244:1::/64")),
    )
    assert decode_node(encode_node(node), "node1") == node


REFUSED_NODES = {
    "no name": (pb.Node(), "name: must not be empty"),
    "bad address": (pb.Node(name="n", addresses=[b"1"]), r"addresses\[0\]: an address has 4"),
    "bad range": (pb.Node(name="n", pod_cidrs=["10.0.0.1/8"]), r"pod_cidrs\[0\]: .*host bits"),
}


@pytest.mark.parametrize("case", REFUSED_NODES.values(), ids=REFUSED_NODES)
def test_malformed_node_is_refused(case: tuple[pb.Node, str]) -> None:
    with pytest.raises(ProtocolError, match=f"^n: {case[1]}"):
        decode_node(case[0].SerializeToString(), "n")


CIDR = pb.Cidr(address=b"\x0a\0\0\0", length=8)
REFUSED_RULES = {
    "any peer and peers": (pb.Rule(any_peer=True, peers=[pb.Peer(cidr=CIDR)]), "any_peer"),
    "any port and ports": (pb.Rule(any_port=True, ports=[pb.Port(port=1)]), "any_port"),
    "range backwards": (pb.Rule(ports=[pb.Port(port=9, end_port=8)]), "end_port 8 is below"),
    "bad peer": (pb.Rule(peers=[pb.Peer()]), r"peers\[0\].cidr: an address has"),
    "port of 17 bits": (pb.Rule(ports=[pb.Port(port=65536)]), "a port is at most 65535"),
    "unknown protocol": (pb.Rule(ports=[pb.Port(protocol=9)]), "protocol: unknown value 9"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED_RULES.values(), ids=REFUSED_RULES)
def test_malformed_rule_is_refused_naming_the_policy(case: tuple[pb.Rule, str]) -> None:
    message = pb.NetworkPolicy(namespace="n", name="p", ingress_rules=[case[0]])
    with pytest.raises(ProtocolError, match=rf"^n/p: ingress_rules\[0\].*{case[1]}"):
        decode_network_policy(message.SerializeToString(), "n/p")


@pytest.mark.parametrize("decode", [decode_node, decode_network_policy])
@given(st.binary(max_size=120))
def test_only_protocol_errors_escape_the_decoders(decode: Callable, data: bytes) -> None:
    message = "name: "
    try:
        decode(data, "name")
    except ProtocolError as error:
        message = str(error)
    assert message.startswith("name: ")


@given(st.frozensets(st.binary(min_size=1), min_size=1), st.binary(min_size=1))
def test_authority_survives_the_wire(roots: frozenset[bytes], issuing: bytes) -> None:
    authority = SignedBy(roots, issuing)
    assert decode_authority(encode_authority(authority), "default") == authority


@pytest.mark.parametrize(
    "message", [pb.Authority(), pb.Authority(roots=[b"x"]), pb.Authority(issuing=b"x")]
)
def test_authority_of_nothing_is_refused(message: pb.Authority) -> None:
    with pytest.raises(ProtocolError, match="default: roots and issuing must not be empty"):
        decode_authority(message.SerializeToString(), "default")
