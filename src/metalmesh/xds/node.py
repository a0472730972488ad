"""Codec of our own types, ``metalmesh.node.v1``: nodes, NetworkPolicies, the CA's state."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

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
from metalmesh.proto import node_pb2 as pb
from metalmesh.xds.fields import (
    parse_message,
    read_address,
    read_enum,
    read_network,
    read_port,
    required,
)

if TYPE_CHECKING:
    from metalmesh.model.authorization import IPNetwork

#: there is one
AUTHORITY_NAME: Final = "default"

_PROTOCOLS: Final = {pb.TCP: Protocol.TCP, pb.UDP: Protocol.UDP, pb.SCTP: Protocol.SCTP}
_PROTOCOL_NUMBERS: Final[dict[Protocol, Any]] = {value: n for n, value in _PROTOCOLS.items()}


# --- nodes -----------------------------------------------------------------------------------


def encode_node(node: Node) -> bytes:
    """Encode one node; its resource name is its name."""
    message = pb.Node(
        name=node.name,
        addresses=[address.packed for address in node.addresses],
        pod_cidrs=[str(cidr) for cidr in node.pod_cidrs],
    )
    return message.SerializeToString(deterministic=True)


def decode_node(data: bytes, name: str) -> Node:
    """Decode one node; ``name`` is the resource's name in the response."""
    try:
        message = parse_message(pb.Node, data)
        return Node(
            name=required(message.name, "name"),
            addresses=tuple(
                read_address(item, f"addresses[{n}]") for n, item in enumerate(message.addresses)
            ),
            pod_cidrs=tuple(
                _cidr_text(item, f"pod_cidrs[{n}]") for n, item in enumerate(message.pod_cidrs)
            ),
        )
    except ProtocolError as error:
        raise ProtocolError(f"{name}: {error}") from error


def _cidr_text(text: str, where: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ProtocolError(f"{where}: {error}") from error


# --- the CA ----------------------------------------------------------------------------------


def encode_authority(authority: SignedBy) -> bytes:
    """Encode what the CA signs with."""
    message = pb.Authority(
        name=AUTHORITY_NAME, roots=sorted(authority.roots), issuing=authority.issuing
    )
    return message.SerializeToString(deterministic=True)


def decode_authority(data: bytes, name: str) -> SignedBy:
    """Decode it; ``name`` is the resource's name in the response."""
    message = parse_message(pb.Authority, data)
    if not message.roots or not message.issuing:
        raise ProtocolError(f"{name}: roots and issuing must not be empty")
    return SignedBy(frozenset(message.roots), message.issuing)


# --- NetworkPolicy ---------------------------------------------------------------------------


def encode_network_policy(policy: CompiledNetworkPolicy) -> bytes:
    """Encode one compiled policy; its resource name is ``namespace/name``."""
    message = pb.NetworkPolicy(
        namespace=policy.namespace,
        name=policy.name,
        selected=[
            pb.Selected(uid=item.uid, addresses=[address.packed for address in item.addresses])
            for item in policy.selected
        ],
        ingress=policy.ingress,
        egress=policy.egress,
        ingress_rules=[_encode_rule(rule) for rule in policy.ingress_rules],
        egress_rules=[_encode_rule(rule) for rule in policy.egress_rules],
    )
    return message.SerializeToString(deterministic=True)


def decode_network_policy(data: bytes, name: str) -> CompiledNetworkPolicy:
    """Decode one compiled policy; ``name`` is the resource's name in the response."""
    try:
        message = parse_message(pb.NetworkPolicy, data)
        return CompiledNetworkPolicy(
            name=required(message.name, "name"),
            namespace=required(message.namespace, "namespace"),
            selected=tuple(
                _selected(item, f"selected[{n}]") for n, item in enumerate(message.selected)
            ),
            ingress=message.ingress,
            egress=message.egress,
            ingress_rules=tuple(
                _rule(item, f"ingress_rules[{n}]") for n, item in enumerate(message.ingress_rules)
            ),
            egress_rules=tuple(
                _rule(item, f"egress_rules[{n}]") for n, item in enumerate(message.egress_rules)
            ),
        )
    except ProtocolError as error:
        raise ProtocolError(f"{name}: {error}") from error


def _selected(message: pb.Selected, where: str) -> SelectedWorkload:
    return SelectedWorkload(
        required(message.uid, f"{where}.uid"),
        tuple(
            read_address(item, f"{where}.addresses[{n}]")
            for n, item in enumerate(message.addresses)
        ),
    )


def _encode_rule(rule: PolicyRule) -> pb.Rule:
    return pb.Rule(
        any_peer=rule.peers is None,
        peers=[
            pb.Peer(
                cidr=_encode_cidr(peer.cidr),
                **{"except": [_encode_cidr(item) for item in peer.excepted]},
            )
            for peer in rule.peers or ()
        ],
        any_port=rule.ports is None,
        ports=[
            pb.Port(
                protocol=_PROTOCOL_NUMBERS[port.protocol], port=port.port, end_port=port.end_port
            )
            for port in rule.ports or ()
        ],
        only_uids=sorted(rule.only_uids),
    )


def _rule(message: pb.Rule, where: str) -> PolicyRule:
    """``any_*`` together with a list is contradictory: refused rather than guessed."""
    if message.any_peer and message.peers:
        raise ProtocolError(f"{where}: any_peer is set and peers are listed; one must be empty")
    if message.any_port and message.ports:
        raise ProtocolError(f"{where}: any_port is set and ports are listed; one must be empty")
    peers = tuple(_peer(item, f"{where}.peers[{n}]") for n, item in enumerate(message.peers))
    ports = tuple(_port(item, f"{where}.ports[{n}]") for n, item in enumerate(message.ports))
    return PolicyRule(
        peers=None if message.any_peer else peers,
        ports=None if message.any_port else ports,
        only_uids=frozenset(message.only_uids),
    )


def _peer(message: pb.Peer, where: str) -> Peer:
    excepted = getattr(message, "except")
    return Peer(
        _cidr(message.cidr, f"{where}.cidr"),
        tuple(_cidr(item, f"{where}.except[{n}]") for n, item in enumerate(excepted)),
    )


def _port(message: pb.Port, where: str) -> PolicyPort:
    port = read_port(message.port, f"{where}.port")
    end_port = read_port(message.end_port, f"{where}.end_port")
    if end_port and end_port < port:
        raise ProtocolError(f"{where}: end_port {end_port} is below port {port}")
    return PolicyPort(read_enum(message.protocol, _PROTOCOLS, f"{where}.protocol"), port, end_port)


def _encode_cidr(network: IPNetwork) -> pb.Cidr:
    return pb.Cidr(address=network.network_address.packed, length=network.prefixlen)


def _cidr(message: pb.Cidr, where: str) -> IPNetwork:
    return read_network(message.address, message.length, where)
