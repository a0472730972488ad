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
    LABEL_TUNNEL,
    ROOT_NAMESPACE,
)
from metalmesh.model.service import LoadBalancing, LoadBalancingMode, Scope, Service
from metalmesh.model.workload import Locality, NetworkAddress, TunnelProtocol, Workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from metalmesh.model.resources.meta import Metadata
    from metalmesh.model.resources.service import ServicePort, ServiceResource
    from metalmesh.model.resources.workload_entry import WorkloadEntry
    from metalmesh.model.workload import IPAddress

ANNOTATION_TRAFFIC_DISTRIBUTION: Final = "networking.istio.io/traffic-distribution"
ANNOTATION_EXPORT_TO: Final = "networking.istio.io/exportTo"
_MODE_AMBIENT: Final = "ambient"
_MODE_NONE: Final = "none"
#: Istio's order; the first label present names the workload in telemetry
_NAME_LABELS: Final = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS: Final = (
    "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version",
)  # fmt: skip
#: what no ztunnel carries; a port of the same number must not shadow TCP's
_NOT_TCP: Final = ("UDP", "SCTP")

_LOCAL_NODE: Final = LoadBalancing(LoadBalancingMode.STRICT, (Scope.NODE,))
_SAME_ZONE: Final = (Scope.NETWORK, Scope.REGION, Scope.ZONE)
_SAME_NODE: Final = (*_SAME_ZONE, Scope.SUBZONE, Scope.NODE)
_DISTRIBUTIONS: Final = {
    "Any": LoadBalancing(),
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
    #: of workloads that name none, and of every virtual address
    network: str = ""
    #: of services that choose none, nor does their namespace; "" and ``Any``: every endpoint alike
    traffic_distribution: str = ""


NOWHERE: Final = Locality()


@dataclass(frozen=True, slots=True)
class Backend:
    """One hostname as the workloads see that it selects: what they become endpoints of."""

    #: labels that a workload must have
    selector: tuple[tuple[str, str], ...]
    #: ``namespace/hostname``
    key: str
    ports: tuple[ServicePort, ...]


# --- services --------------------------------------------------------------------------------


def service_hostname(service: ServiceResource, options: MeshOptions) -> str:
    """``NAME.NAMESPACE.svc.DOMAIN``."""
    return f"{service.meta.name}.{service.meta.namespace}.svc.{options.cluster_domain}"


def render_service(
    service: ServiceResource,
    allocated: Iterable[IPAddress],
    namespace_annotations: Mapping[str, str],
    options: MeshOptions,
    *,
    canonical: bool = True,
) -> Service:
    """A Service with its addresses; ``allocated`` are those it did not ask for itself."""
    addresses = service.cluster_ips or tuple(
        address
        for address in allocated
        if not service.ip_families or f"IPv{address.version}" in service.ip_families
    )
    return Service(
        name=service.meta.name,
        namespace=service.meta.namespace,
        hostname=service_hostname(service, options),
        vips=()
        if service.headless
        else tuple(NetworkAddress(options.network, item) for item in addresses),
        ports=service_ports(service.ports),
        port_names=port_names(service.ports),
        load_balancing=_load_balancing(service, namespace_annotations, options),
        ip_families=_families(service, addresses),
        canonical=canonical,
        private=_private(service.meta),
    )


def service_backend(service: ServiceResource, options: MeshOptions) -> Backend:
    """What a Service makes of the workloads it selects."""
    key = f"{service.meta.namespace}/{service_hostname(service, options)}"
    return Backend(service.selector, key, service.ports)


def service_ports(ports: Iterable[ServicePort]) -> Mapping[int, int]:
    """Service port to target port; 0 for a named one."""
    return MappingProxyType(
        {
            port.port: port.target if isinstance(port.target, int) else 0
            for port in _tcp_ports(ports)
        }
    )


def port_names(ports: Iterable[ServicePort]) -> Mapping[str, int]:
    """Service ports by name."""
    return MappingProxyType({port.name: port.port for port in _tcp_ports(ports) if port.name})


def _tcp_ports(ports: Iterable[ServicePort]) -> list[ServicePort]:
    return [port for port in ports if port.protocol not in _NOT_TCP]


def _private(meta: Metadata) -> bool:
    """Whether ``exportTo`` names nobody but the own namespace."""
    names = {name.strip() for name in meta.annotations.get(ANNOTATION_EXPORT_TO, "").split(",")}
    return names <= {".", meta.namespace} and names != {""}


def _families(service: ServiceResource, addresses: Sequence[IPAddress]) -> str:
    wanted = set(service.ip_families) or {f"IPv{address.version}" for address in addresses}
    if len(wanted) > 1:
        return "Dual"
    return wanted.pop() if wanted else ""


def _load_balancing(
    service: ServiceResource, namespace_annotations: Mapping[str, str], options: MeshOptions
) -> LoadBalancing:
    """Local traffic only, else the distribution of the object, its namespace or the mesh."""
    if service.internal_traffic_policy == "Local":
        chosen = _LOCAL_NODE
    else:
        chosen = distribution(
            options, service.traffic_distribution, service.meta.annotations, namespace_annotations
        )
    return LoadBalancing(chosen.mode, chosen.preferences, allow_unhealthy=service.publish_not_ready)


def distribution(options: MeshOptions, own: str, *annotations: Mapping[str, str]) -> LoadBalancing:
    """The traffic distribution: ``own``, else the first annotation, else the mesh's."""
    names = (own, *(found.get(ANNOTATION_TRAFFIC_DISTRIBUTION, "") for found in annotations))
    name = next((name for name in names if name in _DISTRIBUTIONS), options.traffic_distribution)
    return _DISTRIBUTIONS.get(name, LoadBalancing())


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


def speaks_hbone(labels: Mapping[str, str]) -> bool:
    """Whether the workload does so by itself, without a ztunnel of ours."""
    return "http" in labels.get(LABEL_TUNNEL, "")


def render_workload(
    entry: WorkloadEntry,
    namespace_labels: Mapping[str, str],
    backends: Iterable[Backend],
    policies: Sequence[str],
    options: MeshOptions,
    node_locality: Locality = NOWHERE,
) -> Workload:
    """A WorkloadEntry; ``backends`` select it, ``policies`` are the keys it lists, in order."""
    meta = entry.meta
    native = speaks_hbone(entry.labels)
    canonical_name, canonical_revision = canonical_names(entry.labels, meta.name)
    meshed = native or in_mesh(entry, namespace_labels)
    return Workload(
        uid=workload_uid(entry, options),
        name=meta.name,
        namespace=meta.namespace,
        addresses=entry.addresses,
        hostname=entry.hostname,
        network=entry.network or options.network,
        protocol=TunnelProtocol.HBONE if meshed else TunnelProtocol.NONE,
        trust_domain=options.trust_domain,
        service_account=entry.service_account,
        node=entry.node,
        native_tunnel=native,
        workload_name=entry.labels.get("app") or meta.name,
        canonical_name=canonical_name,
        canonical_revision=canonical_revision,
        cluster_id=options.cluster_id,
        locality=node_locality if entry.locality == NOWHERE else entry.locality,
        capacity=entry.weight,
        services=MappingProxyType(
            {backend.key: endpoint_ports(backend.ports, entry.ports) for backend in backends}
        ),
        authorization_policies=tuple(policies),
    )


def canonical_names(labels: Mapping[str, str], name: str) -> tuple[str, str]:
    """Canonical name and revision, for logs and metrics."""
    return (
        _first_label(labels, _NAME_LABELS) or name,
        _first_label(labels, _REVISION_LABELS) or "latest",
    )


def endpoint_ports(ports: Iterable[ServicePort], own: Mapping[str, int]) -> Mapping[int, int]:
    """Service port to the workload's port; ``own`` are the workload's ports by name.

    A named target is looked up among the workload's ports; without it the port is left out. Else
    the workload's port of the service port's name wins (Istio, WorkloadEntry ``ports``).
    """
    found = {}
    for port in _tcp_ports(ports):
        if isinstance(port.target, str):
            target = own.get(port.target, 0)
        else:
            target = own.get(port.name, port.target)
        if target:
            found[port.port] = target
    return MappingProxyType(found)


def _first_label(labels: Mapping[str, str], names: Sequence[str]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")
