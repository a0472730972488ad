"""Resources to workloads and services as the data plane knows them (istio-facts 3.5 and 3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from metalmesh.constants import (
    DEFAULT_CLUSTER_DOMAIN,
    DEFAULT_CLUSTER_ID,
    DEFAULT_TRUST_DOMAIN,
    LABEL_DATAPLANE_MODE,
    ROOT_NAMESPACE,
)
from metalmesh.model.service import LoadBalancing, LoadBalancingMode, Scope, Service
from metalmesh.model.workload import NetworkAddress, TunnelProtocol, Workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from metalmesh.model.resources.service import ServicePort, ServiceResource
    from metalmesh.model.resources.workload_entry import WorkloadEntry
    from metalmesh.model.workload import IPAddress

ANNOTATION_TRAFFIC_DISTRIBUTION: Final = "networking.istio.io/traffic-distribution"
_MODE_AMBIENT: Final = "ambient"
_MODE_NONE: Final = "none"
#: Istio's order; the first label present names the workload in telemetry
_NAME_LABELS: Final = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS: Final = (
    "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version",
)  # fmt: skip
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})

_LOCAL_NODE: Final = LoadBalancing(LoadBalancingMode.STRICT, (Scope.NODE,))
_SAME_ZONE: Final = (Scope.NETWORK, Scope.REGION, Scope.ZONE)
_SAME_NODE: Final = (*_SAME_ZONE, Scope.SUBZONE, Scope.NODE)
_DISTRIBUTIONS: Final = {
    "PreferClose": LoadBalancing(LoadBalancingMode.FAILOVER, _SAME_ZONE),
    "PreferSameZone": LoadBalancing(LoadBalancingMode.FAILOVER, _SAME_ZONE),
    "PreferSameNode": LoadBalancing(LoadBalancingMode.FAILOVER, _SAME_NODE),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshOptions:
    """What every object of the mesh shares."""

    cluster_id: str = DEFAULT_CLUSTER_ID
    cluster_domain: str = DEFAULT_CLUSTER_DOMAIN
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    root_namespace: str = ROOT_NAMESPACE


# --- services --------------------------------------------------------------------------------


def service_hostname(service: ServiceResource, options: MeshOptions) -> str:
    """``NAME.NAMESPACE.svc.DOMAIN``."""
    return f"{service.meta.name}.{service.meta.namespace}.svc.{options.cluster_domain}"


def render_service(
    service: ServiceResource,
    allocated: Iterable[IPAddress],
    namespace_annotations: Mapping[str, str],
    options: MeshOptions,
) -> Service:
    """A Service with its addresses; ``allocated`` are those it did not ask for itself."""
    addresses = service.cluster_ips or tuple(allocated)
    return Service(
        name=service.meta.name,
        namespace=service.meta.namespace,
        hostname=service_hostname(service, options),
        vips=() if service.headless else tuple(NetworkAddress("", item) for item in addresses),
        ports=MappingProxyType(
            {
                port.port: port.target if isinstance(port.target, int) else 0
                for port in _tcp_ports(service)
            }
        ),
        load_balancing=_load_balancing(service, namespace_annotations),
        ip_families=_families(service, addresses),
        canonical=True,
    )


def _tcp_ports(service: ServiceResource) -> list[ServicePort]:
    """A ztunnel carries TCP only; a UDP port of the same number must not shadow it."""
    return [port for port in service.ports if port.protocol == "TCP"]


def _families(service: ServiceResource, addresses: Sequence[IPAddress]) -> str:
    wanted = set(service.ip_families) or {f"IPv{address.version}" for address in addresses}
    if len(wanted) > 1:
        return "Dual"
    return wanted.pop() if wanted else ""


def _load_balancing(
    service: ServiceResource, namespace_annotations: Mapping[str, str]
) -> LoadBalancing:
    """Local traffic only, else the distribution of the object or of its namespace."""
    if service.internal_traffic_policy == "Local":
        chosen = _LOCAL_NODE
    else:
        name = (
            service.traffic_distribution
            or service.meta.annotations.get(ANNOTATION_TRAFFIC_DISTRIBUTION)
            or namespace_annotations.get(ANNOTATION_TRAFFIC_DISTRIBUTION, "")
        )
        chosen = _DISTRIBUTIONS.get(name, LoadBalancing())
    return LoadBalancing(chosen.mode, chosen.preferences, allow_unhealthy=service.publish_not_ready)


# --- workloads -------------------------------------------------------------------------------


def workload_uid(entry: WorkloadEntry, options: MeshOptions) -> str:
    """The uid of a WorkloadEntry, as istiod spells it."""
    meta = entry.meta
    return f"{options.cluster_id}/networking.istio.io/WorkloadEntry/{meta.namespace}/{meta.name}"


def in_mesh(entry: WorkloadEntry, namespace_labels: Mapping[str, str]) -> bool:
    """Enrolled by its own label, or by its namespace's unless it opts out."""
    mode = entry.labels.get(LABEL_DATAPLANE_MODE, "")
    if mode == _MODE_AMBIENT:
        return True
    return namespace_labels.get(LABEL_DATAPLANE_MODE) == _MODE_AMBIENT and mode != _MODE_NONE


def render_workload(
    entry: WorkloadEntry,
    namespace_labels: Mapping[str, str],
    services: Iterable[ServiceResource],
    policies: Sequence[str],
    options: MeshOptions,
) -> Workload:
    """A WorkloadEntry; ``services`` select it, ``policies`` are the keys it lists, in order."""
    meta = entry.meta
    app = entry.labels.get("app") or meta.name
    enrolled = in_mesh(entry, namespace_labels)
    return Workload(
        uid=workload_uid(entry, options),
        name=meta.name,
        namespace=meta.namespace,
        addresses=entry.addresses,
        hostname=entry.hostname,
        network=entry.network,
        protocol=TunnelProtocol.HBONE if enrolled else TunnelProtocol.NONE,
        trust_domain=options.trust_domain,
        service_account=entry.service_account,
        node=entry.node,
        workload_name=app,
        canonical_name=_first_label(entry.labels, _NAME_LABELS) or meta.name,
        canonical_revision=_first_label(entry.labels, _REVISION_LABELS) or "latest",
        cluster_id=options.cluster_id,
        locality=entry.locality,
        capacity=entry.weight,
        services=MappingProxyType(
            {
                f"{service.meta.namespace}/{service_hostname(service, options)}": endpoint_ports(
                    service, entry
                )
                for service in services
            }
        ),
        authorization_policies=tuple(policies),
    )


def endpoint_ports(service: ServiceResource, entry: WorkloadEntry) -> Mapping[int, int]:
    """Service port to the workload's port.

    A named target is looked up among the workload's ports; without it the port is left out. Else
    the workload's port of the service port's name wins (Istio, WorkloadEntry ``ports``).
    """
    found = {}
    for port in _tcp_ports(service):
        if isinstance(port.target, str):
            target = entry.ports.get(port.target, 0)
        else:
            target = entry.ports.get(port.name, port.target)
        if target:
            found[port.port] = target
    return MappingProxyType(found)


def _first_label(labels: Mapping[str, str], names: Sequence[str]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")
