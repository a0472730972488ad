"""Services as the data plane knows them (istio.workload.Service, istio-facts 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.workload import GatewayAddress, NetworkAddress, NetworkCidr


class LoadBalancingMode(Enum):
    """How endpoints are chosen (istio-facts 6.2)."""

    STANDARD = "Standard"
    STRICT = "Strict"
    FAILOVER = "Failover"
    PASSTHROUGH = "Passthrough"


class Scope(Enum):
    """A routing preference."""

    REGION = "Region"
    ZONE = "Zone"
    SUBZONE = "Subzone"
    NODE = "Node"
    CLUSTER = "Cluster"
    NETWORK = "Network"


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    """Endpoint choice of a service."""

    mode: LoadBalancingMode = LoadBalancingMode.STANDARD
    preferences: tuple[Scope, ...] = ()
    allow_unhealthy: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One service hostname with its virtual addresses."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[NetworkAddress, ...] = ()
    #: virtual ranges (a ServiceEntry's CIDR addresses); a host address always wins over them
    cidr_vips: tuple[NetworkCidr, ...] = ()
    #: service port -> target port; 0 means "each endpoint's own mapping" (a named port)
    ports: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    #: names of service ports, as SRV records need them
    port_names: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    subject_alt_names: tuple[str, ...] = ()
    waypoint: GatewayAddress | None = None
    load_balancing: LoadBalancing = LoadBalancing()
    ip_families: str = ""  # "", "IPv4", "IPv6" or "Dual"
    canonical: bool = False
    private: bool = False  # visible in its own namespace only

    @property
    def key(self) -> str:
        """``namespace/hostname``, the resource name in WDS."""
        return f"{self.namespace}/{self.hostname}"
