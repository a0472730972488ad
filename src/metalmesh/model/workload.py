"""Workloads as the data plane knows them (istio.workload.Workload, istio-facts 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType
from typing import TYPE_CHECKING

from metalmesh.model.identity import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Mapping

IPAddress = IPv4Address | IPv6Address


class TunnelProtocol(Enum):
    """How a workload accepts traffic: plain TCP or HBONE on its port 15008."""

    NONE = "TCP"
    HBONE = "HBONE"


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """An address within a network; the empty network name is the default one."""

    network: str
    address: IPAddress

    def __str__(self) -> str:
        return f"{self.network}/{self.address}"


@dataclass(frozen=True, slots=True)
class NetworkCidr:
    """A range of addresses within a network."""

    network: str
    cidr: IPv4Network | IPv6Network

    def __str__(self) -> str:
        return f"{self.network}/{self.cidr}"


@dataclass(frozen=True, slots=True)
class NamespacedHostname:
    """A service's name: ``namespace/hostname``."""

    namespace: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where a waypoint or network gateway is found."""

    destination: NetworkAddress | NamespacedHostname
    hbone_mtls_port: int


@dataclass(frozen=True, slots=True)
class Locality:
    """Region, zone and subzone; empty where unknown."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One workload: a netns or host workload of a node, or an address outside the mesh."""

    uid: str
    name: str
    namespace: str
    addresses: tuple[IPAddress, ...] = ()
    hostname: str = ""
    network: str = ""
    protocol: TunnelProtocol = TunnelProtocol.NONE
    trust_domain: str = "cluster.local"
    service_account: str = "default"
    node: str = ""
    workload_name: str = ""
    workload_type: str = "pod"
    canonical_name: str = ""
    canonical_revision: str = ""
    cluster_id: str = "Kubernetes"
    locality: Locality = Locality()
    healthy: bool = True
    host_network: bool = False
    native_tunnel: bool = False
    capacity: int = 1
    waypoint: GatewayAddress | None = None
    #: services this workload is an endpoint of: key ``namespace/hostname``, value
    #: service port -> target port
    services: Mapping[str, Mapping[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    #: keys ``namespace/name`` of selector-scoped policies, sorted
    authorization_policies: tuple[str, ...] = ()

    @property
    def identity(self) -> SpiffeId:
        """The workload's SPIFFE identity."""
        return SpiffeId(self.trust_domain, self.namespace, self.service_account)
