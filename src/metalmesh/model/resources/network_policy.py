"""NetworkPolicy (networking.k8s.io/v1), selectors unresolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metalmesh.model.network_policy import Protocol
from metalmesh.model.resources.meta import LabelSelector, parse_label_selector
from metalmesh.model.resources.reader import PORT_MAX, read_network, shown

if TYPE_CHECKING:
    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.resources.meta import Metadata
    from metalmesh.model.resources.reader import Reader

_TYPES: Final = ("Ingress", "Egress")
_PROTOCOLS: Final = tuple(protocol.value for protocol in Protocol)


@dataclass(frozen=True, slots=True)
class PortEntry:
    """A port of a rule: a number, a range, a name, or (0) every port of the protocol."""

    protocol: Protocol
    port: int | str = 0
    end_port: int = 0


@dataclass(frozen=True, slots=True)
class IpBlock:
    """A range less its exceptions."""

    cidr: IPNetwork
    excepted: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """Either ``ip_block``, or workloads by namespace AND labels.

    ``namespaces`` None means the policy's own namespace, ``workloads`` None means all.
    """

    ip_block: IpBlock | None = None
    namespaces: LabelSelector | None = None
    workloads: LabelSelector | None = None


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """Peers AND ports; empty means any (Kubernetes: "empty or missing")."""

    peers: tuple[PeerEntry, ...] = ()
    ports: tuple[PortEntry, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPolicyResource:
    """One NetworkPolicy."""

    meta: Metadata
    selector: LabelSelector
    ingress: bool
    egress: bool
    ingress_rules: tuple[RuleEntry, ...] = ()
    egress_rules: tuple[RuleEntry, ...] = ()


def parse_network_policy(reader: Reader, meta: Metadata) -> NetworkPolicyResource:
    """Read a NetworkPolicy; policyTypes defaults as in Kubernetes."""
    reader.ignore("status")
    if not reader.has("spec"):
        reader.fail("spec", "is required")
    with reader.child("spec") as spec:
        ingress_rules = tuple(_rule(item, "from") for item in spec.children("ingress"))
        egress_rules = tuple(_rule(item, "to") for item in spec.children("egress"))
        types = spec.strings("policyTypes")
        for index, name in enumerate(types):
            if name not in _TYPES:
                spec.fail(f"policyTypes[{index}]", f"must be Ingress or Egress, got {shown(name)}")
        # absent: Ingress always, Egress when there are egress rules
        return NetworkPolicyResource(
            meta=meta,
            selector=parse_label_selector(spec, "podSelector"),
            ingress="Ingress" in types or not types,
            egress="Egress" in types or (not types and bool(egress_rules)),
            ingress_rules=ingress_rules,
            egress_rules=egress_rules,
        )


def _rule(reader: Reader, peers: str) -> RuleEntry:
    with reader:
        return RuleEntry(
            tuple(map(_peer, reader.children(peers))),
            tuple(map(_port, reader.children("ports"))),
        )


def _peer(reader: Reader) -> PeerEntry:
    with reader:
        block = _ip_block(reader)
        namespaces = workloads = None
        if reader.has("namespaceSelector"):
            namespaces = parse_label_selector(reader, "namespaceSelector")
        if reader.has("podSelector"):
            workloads = parse_label_selector(reader, "podSelector")
    selects = namespaces is not None or workloads is not None
    if block is not None and selects:
        reader.fail("ipBlock", "cannot be combined with selectors in one peer; make it two peers")
    if not reader.has("ipBlock") and not selects:
        reader.fail("", "must have ipBlock, podSelector or namespaceSelector")
    return PeerEntry(block, namespaces, workloads)


def _ip_block(reader: Reader) -> IpBlock | None:
    if not reader.has("ipBlock"):
        return None
    with reader.child("ipBlock") as block:
        cidr = read_network(block, "cidr", block.required("cidr"))
        excepted = []
        for index, text in enumerate(block.strings("except")):
            network = read_network(block, f"except[{index}]", text)
            if network is None or cidr is None:
                continue
            if network.version != cidr.version or not _within(network, cidr):
                block.fail(f"except[{index}]", f"{network} must lie within {cidr}")
            excepted.append(network)
    return None if cidr is None else IpBlock(cidr, tuple(excepted))


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Kubernetes wants a strict subset: an exception as large as the block leaves nothing."""
    return inner.prefixlen > outer.prefixlen and inner.network_address in outer


def _port(reader: Reader) -> PortEntry:
    with reader:
        protocol = Protocol(reader.choice("protocol", _PROTOCOLS, "TCP"))
        end_port = reader.port("endPort")
        port = _port_value(reader)
    if end_port and not isinstance(port, int):
        reader.fail("endPort", "needs a numeric port")
        return PortEntry(protocol, port)
    if end_port and not port:
        reader.fail("endPort", "needs a port to start from")
    if end_port and isinstance(port, int) and end_port < port:
        reader.fail("endPort", f"must not be below port {port}, got {end_port}")
    return PortEntry(protocol, port, end_port)


def _port_value(reader: Reader) -> int | str:
    if not reader.has("port"):
        return 0
    found = reader.value("port", object)
    if isinstance(found, str) and 0 < len(found) <= 15 and not found.isdigit():
        return found
    if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= PORT_MAX:
        return found
    reader.fail("port", f"must be 1 to {PORT_MAX} or a port name, got {shown(found)}")
    return 0
