"""NetworkPolicy with its selectors resolved (metalmesh.node.v1.NetworkPolicy)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.workload import IPAddress


class Protocol(Enum):
    """Transport protocol of a port rule."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


@dataclass(frozen=True, slots=True)
class PolicyPort:
    """A port or range of ports; ``port`` 0 is every port of the protocol."""

    protocol: Protocol
    port: int = 0
    end_port: int = 0

    def admits(self, protocol: Protocol, port: int) -> bool:
        """Whether traffic of ``protocol`` to ``port`` is within this entry."""
        if protocol is not self.protocol:
            return False
        return self.port == 0 or self.port <= port <= (self.end_port or self.port)


@dataclass(frozen=True, slots=True)
class Peer:
    """A range of addresses less its exceptions."""

    cidr: IPNetwork
    excepted: tuple[IPNetwork, ...] = ()

    def admits(self, address: IPAddress) -> bool:
        """Whether ``address`` is in the range and in none of the exceptions."""
        if address.version != self.cidr.version or address not in self.cidr:
            return False
        return not any(address.version == net.version and address in net for net in self.excepted)


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """Peers and ports; ``None`` means any, an empty tuple means none."""

    peers: tuple[Peer, ...] | None = None
    ports: tuple[PolicyPort, ...] | None = None
    #: when not empty the rule holds for these selected workloads only (named ports)
    only_uids: frozenset[str] = frozenset()
    #: index of the NetworkPolicy's rule it was made from; named ports make several of one
    origin: int = field(default=-1, compare=False)


@dataclass(frozen=True, slots=True)
class SelectedWorkload:
    """A workload that the policy isolates."""

    uid: str
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledNetworkPolicy:
    """One NetworkPolicy, ready to be rendered for nftables or evaluated."""

    name: str
    namespace: str
    selected: tuple[SelectedWorkload, ...]
    ingress: bool
    egress: bool
    ingress_rules: tuple[PolicyRule, ...] = ()
    egress_rules: tuple[PolicyRule, ...] = ()

    @property
    def key(self) -> str:
        """``namespace/name``, the resource name in xDS."""
        return f"{self.namespace}/{self.name}"
