"""ServiceEntry to services and workloads as the data plane knows them (istio-facts 3.5 and 3.6)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from metalmesh.model.resources.service_entry import InlineEndpoint, Resolution
from metalmesh.model.service import LoadBalancing, LoadBalancingMode, Service
from metalmesh.model.workload import (
    NetworkAddress,
    NetworkCidr,
    TunnelProtocol,
    Workload,
)
from metalmesh.render.wds import (
    NOWHERE,
    Backend,
    canonical_names,
    distribution,
    endpoint_ports,
    in_mesh,
    port_names,
    service_ports,
    speaks_hbone,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from metalmesh.model.resources.service_entry import ServiceEntry
    from metalmesh.model.resources.workload_entry import WorkloadEntry
    from metalmesh.model.workload import IPAddress, Locality
    from metalmesh.render.wds import MeshOptions

#: resolution NONE: the client's own destination, whatever we think of its health
_ORIGINAL = LoadBalancing(LoadBalancingMode.PASSTHROUGH, allow_unhealthy=True)


def host_key(entry: ServiceEntry, host: str) -> str:
    """``namespace/hostname``, the resource name in WDS."""
    return f"{entry.meta.namespace}/{host}"


def allocation_key(entry: ServiceEntry, host: str) -> str:
    """The name under which the virtual addresses of a host are remembered."""
    return f"ServiceEntry {entry.meta.key} {host}"


def hosts_to_allocate(entry: ServiceEntry) -> list[str]:
    """Hosts that get virtual addresses of the mesh's choice; a wildcard has no single one."""
    if not entry.wants_address:
        return []
    return [host for host in entry.hosts if not host.startswith("*")]


def render_host(
    entry: ServiceEntry,
    host: str,
    allocated: Iterable[IPAddress],
    namespace_annotations: Mapping[str, str],
    options: MeshOptions,
    *,
    canonical: bool,
) -> Service:
    """One host of a ServiceEntry as a service."""
    if entry.resolution is Resolution.NONE:
        balancing = _ORIGINAL
    else:
        balancing = distribution(options, "", entry.meta.annotations, namespace_annotations)
    return Service(
        name=entry.meta.name,
        namespace=entry.meta.namespace,
        hostname=host,
        vips=tuple(NetworkAddress(options.network, item) for item in entry.addresses or allocated),
        cidr_vips=tuple(NetworkCidr(options.network, item) for item in entry.cidrs),
        ports=service_ports(entry.ports),
        port_names=port_names(entry.ports),
        subject_alt_names=entry.subject_alt_names,
        load_balancing=balancing,
        canonical=canonical,
        private=entry.private,
    )


def host_backend(entry: ServiceEntry, host: str) -> Backend:
    """What a host makes of the workloads that its ``workloadSelector`` selects."""
    return Backend(entry.selector or (), host_key(entry, host), entry.ports)


@dataclass(frozen=True, slots=True)
class KnownWorkload:
    """A WorkloadEntry at the address of an inline endpoint, with what it inherits."""

    entry: WorkloadEntry
    namespace_labels: Mapping[str, str]
    node_locality: Locality
    healthy: bool = True


def render_endpoints(
    entry: ServiceEntry,
    hosts: Iterable[str],
    known: Mapping[tuple[str, IPAddress], KnownWorkload],
    options: MeshOptions,
) -> Iterator[Workload]:
    """The workloads behind ``hosts`` that are declared in the entry itself.

    An endpoint at the address of a WorkloadEntry is that workload: it is reached with its identity
    and through its tunnel. By-name resolution without endpoints looks each host up.
    """
    served = list(hosts)
    seen: dict[str, int] = {}
    for endpoint in entry.endpoints:
        count = seen[endpoint.place] = seen.get(endpoint.place, 0) + 1
        name = endpoint.place if count == 1 else f"{endpoint.place}#{count}"
        found = None
        if endpoint.address is not None:
            found = known.get((endpoint.network or options.network, endpoint.address))
        yield _endpoint(entry, endpoint, name, served, found, options)
    if entry.resolution.by_name and not entry.endpoints and entry.selector is None:
        for host in served:
            itself = InlineEndpoint(
                hostname=host, ports=MappingProxyType({}), labels=MappingProxyType({})
            )
            yield _endpoint(entry, itself, host, [host], None, options)


def _endpoint(
    entry: ServiceEntry,
    endpoint: InlineEndpoint,
    place: str,
    hosts: Iterable[str],
    known: KnownWorkload | None,
    options: MeshOptions,
) -> Workload:
    meta = entry.meta
    native = speaks_hbone(endpoint.labels)
    canonical_name, canonical_revision = canonical_names(endpoint.labels, meta.name)
    meshed = native or (known is not None and in_mesh(known.entry, known.namespace_labels))
    ports = endpoint_ports(entry.ports, endpoint.ports)
    locality = endpoint.locality
    if known is not None and locality == NOWHERE:
        own = known.entry.locality
        locality = known.node_locality if own == NOWHERE else own
    return Workload(
        uid=f"{options.cluster_id}/networking.istio.io/ServiceEntry/{meta.key}/{place}",
        name=meta.name,
        namespace=meta.namespace if known is None else known.entry.meta.namespace,
        addresses=() if endpoint.address is None else (endpoint.address,),
        hostname=endpoint.hostname,
        network=endpoint.network or options.network,
        protocol=TunnelProtocol.HBONE if meshed else TunnelProtocol.NONE,
        trust_domain=options.trust_domain,
        service_account=(
            endpoint.service_account if known is None else known.entry.service_account
        ),
        node="" if known is None else known.entry.node,
        native_tunnel=native,
        workload_name=endpoint.labels.get("app") or meta.name,
        canonical_name=canonical_name,
        canonical_revision=canonical_revision,
        cluster_id=options.cluster_id,
        locality=locality,
        healthy=known is None or known.healthy,
        capacity=endpoint.weight,
        services=MappingProxyType({host_key(entry, host): ports for host in hosts}),
    )
