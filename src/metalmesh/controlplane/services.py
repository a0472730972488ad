"""Services and ServiceEntries to what is served of them; pure.

Of those that claim one hostname in one namespace a Service wins, else the oldest ServiceEntry; the
others are served without that host, and their status says so. In other namespaces the same
hostname may live on; it is canonical in one of them only. Who names an address that was allocated
to a Service, and a ServiceEntry that names any Service's or an older ServiceEntry's, is not
canonical either: it has that address for clients of its own namespace, and cannot take it from
anybody else.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from metalmesh.controlplane.snapshot import Condition, ServedResource, served_resource
from metalmesh.model.workload import Workload
from metalmesh.render.service_entries import (
    KnownWorkload,
    allocation_key,
    host_backend,
    host_key,
    hosts_to_allocate,
    render_endpoints,
    render_host,
)
from metalmesh.render.vips import allocate
from metalmesh.render.wds import NOWHERE, render_service, service_backend, service_hostname
from metalmesh.xds.wds import address_aliases, address_name, encode_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from metalmesh.controlplane.memory import Memory
    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.resources import Namespace, ServiceEntry, ServiceResource, WorkloadEntry
    from metalmesh.model.service import Service
    from metalmesh.model.workload import IPAddress, Locality
    from metalmesh.render.wds import Backend, MeshOptions

_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceObjects:
    """What services are computed from, each kind oldest first."""

    services: Sequence[ServiceResource]
    entries: Sequence[ServiceEntry]
    workloads: Sequence[WorkloadEntry]
    namespaces: Mapping[str, Namespace]
    #: node name to where the machine is
    places: Mapping[str, Locality]
    #: whether its node finds a workload well
    healthy: Callable[[WorkloadEntry], bool]


@dataclass(frozen=True, slots=True)
class _Host:
    """One host of a ServiceEntry that is served."""

    entry: ServiceEntry
    host: str
    canonical: bool


class ServiceCatalog:
    """Every hostname of the mesh with its addresses and endpoints."""

    def __init__(self, objects: ServiceObjects, mesh: MeshOptions, memory: Memory) -> None:
        self._objects = objects
        self._mesh = mesh
        self._memory = memory
        self._refused: dict[str, list[str]] = defaultdict(list)
        self._hosts: dict[str, list[_Host]] = defaultdict(list)
        #: objects that name an address that is somebody else's, and whose
        self._contested: dict[str, str] = {}
        self._settle_hosts()

    def _settle_hosts(self) -> None:
        """Decide who gets which hostname."""
        owners: dict[str, str] = {}
        known: set[str] = set()
        for service in self._objects.services:
            hostname = service_hostname(service, self._mesh)
            owners[f"{service.meta.namespace}/{hostname}"] = f"Service {service.meta.key}"
            known.add(hostname)
        for entry in self._objects.entries:
            if not entry.exported:
                continue
            for host in entry.hosts:
                owner = owners.setdefault(host_key(entry, host), f"ServiceEntry {entry.meta.key}")
                if owner != f"ServiceEntry {entry.meta.key}":
                    self._refused[entry.meta.key].append(f"{host} belongs to {owner}")
                    continue
                self._hosts[entry.meta.key].append(_Host(entry, host, host not in known))
                known.add(host)

    def conditions(self) -> Iterator[tuple[str, tuple[Condition, ...]]]:
        """Object id and status of every ServiceEntry, and of Services that have one."""
        for service in self._objects.services:
            key = f"Service {service.meta.key}"
            if key in self._contested:
                yield key, (self._contest(key),)
        for entry in self._objects.entries:
            yield f"ServiceEntry {entry.meta.key}", (self._condition(entry),)

    def _condition(self, entry: ServiceEntry) -> Condition:
        refused = self._refused.get(entry.meta.key)
        served = bool(self._hosts.get(entry.meta.key))
        reason, message = "Accepted", "served to every node"
        if refused:
            reason = "HostConflict"
            message = f"{'; '.join(refused)}; remove the host from one of them"
        elif f"ServiceEntry {entry.meta.key}" in self._contested:
            return self._contest(f"ServiceEntry {entry.meta.key}")
        elif not entry.exported:
            reason, message, served = "NotExported", "exportTo ~ hides it from everybody", True
        elif not entry.private and set(entry.export_to) - {"*"}:
            reason = "ExportedToAll"
            message = "exportTo knows only . and * here: every namespace sees it"
        return Condition(type="Accepted", status=served, reason=reason, message=message)

    def _contest(self, key: str) -> Condition:
        message = f"{self._contested[key]}, where clients of other namespaces go on to reach it"
        return Condition(type="Accepted", status=True, reason="AddressConflict", message=message)

    # --- addresses ---------------------------------------------------------------------------

    def allocate(
        self,
        service_cidrs: Sequence[IPNetwork],
        entry_cidrs: Sequence[IPNetwork],
        previous: Mapping[str, tuple[IPAddress, ...]],
    ) -> dict[str, tuple[IPAddress, ...]]:
        """Virtual addresses for whoever names none, from the range of its kind."""
        services = [
            item.meta.key
            for item in self._objects.services
            if not item.headless and not item.cluster_ips
        ]
        hosts = [
            allocation_key(item.entry, item.host)
            for items in self._hosts.values()
            for item in items
            if item.host in hosts_to_allocate(item.entry)
        ]
        # naming an address does not drive away who has been given it
        kept = {address for key in (*services, *hosts) for address in previous.get(key, ())}
        taken = {address for item in self._objects.entries for address in item.addresses}
        taken.update(address for item in self._objects.services for address in item.cluster_ips)
        taken -= kept
        taken.update(address for item in self._objects.workloads for address in item.addresses)
        found = allocate(services, service_cidrs, taken, previous)
        taken.update(address for addresses in found.values() for address in addresses)
        self._settle_addresses(found)
        return {**found, **allocate(hosts, entry_cidrs, taken, previous)}

    def _settle_addresses(self, allocated: Mapping[str, tuple[IPAddress, ...]]) -> None:
        """Find out whose addresses entries name that are not theirs alone."""
        owners: dict[IPAddress, str] = {}
        for key, addresses in allocated.items():
            owners.update(dict.fromkeys(addresses, f"Service {key}"))
        named = [(f"Service {item.meta.key}", item.cluster_ips) for item in self._objects.services]
        named += [
            (f"ServiceEntry {item.meta.key}", item.addresses) for item in self._objects.entries
        ]
        for key, addresses in named:
            taken = next((item for item in addresses if item in owners), None)
            if taken is not None:
                self._contested[key] = f"{taken} belongs to {owners[taken]}"
            for address in addresses:
                owners.setdefault(address, key)

    # --- what is served ----------------------------------------------------------------------

    def backends(self, namespace: str) -> list[Backend]:
        """What workloads of a namespace can be selected by; the same values if unchanged."""
        remember = self._memory.remember
        found: list[Backend] = [
            remember(
                "backend", item.meta.key, (item, self._mesh),
                lambda item=item: service_backend(item, self._mesh),
            )
            for item in self._objects.services
            if item.meta.namespace == namespace and item.selector
        ]  # fmt: skip
        found += [
            remember(
                "host backend", allocation_key(item.entry, item.host), (item.entry,),
                lambda item=item: host_backend(item.entry, item.host),
            )
            for items in self._hosts.values()
            for item in items
            if item.entry.meta.namespace == namespace and item.entry.selector
        ]  # fmt: skip
        return found

    def serve(self, vips: Mapping[str, tuple[IPAddress, ...]]) -> Iterator[ServedResource]:
        """Services, hosts of ServiceEntries, and the workloads these declare themselves."""
        for service in self._objects.services:
            yield self._serve_service(service, vips.get(service.meta.key, ()))
        for items in self._hosts.values():
            for item in items:
                yield self._serve_host(item, vips.get(allocation_key(item.entry, item.host), ()))
        known = self._known_workloads()
        for items in self._hosts.values():
            yield from self._serve_endpoints(items, known)

    def _annotations(self, namespace: Namespace | None) -> Mapping[str, str]:
        return namespace.meta.annotations if namespace else _NO_LABELS

    def _serve_service(
        self, service: ServiceResource, allocated: tuple[IPAddress, ...]
    ) -> ServedResource:
        namespace = self._objects.namespaces.get(service.meta.namespace)
        canonical = f"Service {service.meta.key}" not in self._contested
        served: ServedResource = self._memory.remember(
            "Service",
            service.meta.key,
            (service, namespace, self._mesh, canonical, *allocated),
            lambda: _resource(
                render_service(
                    service, allocated, self._annotations(namespace), self._mesh,
                    canonical=canonical,
                )
            ),
        )  # fmt: skip
        return served

    def _serve_host(self, item: _Host, allocated: tuple[IPAddress, ...]) -> ServedResource:
        entry = item.entry
        namespace = self._objects.namespaces.get(entry.meta.namespace)
        canonical = item.canonical and f"ServiceEntry {entry.meta.key}" not in self._contested
        served: ServedResource = self._memory.remember(
            "ServiceEntry",
            allocation_key(entry, item.host),
            (entry, namespace, self._mesh, canonical, *allocated),
            lambda: _resource(
                render_host(
                    entry, item.host, allocated, self._annotations(namespace), self._mesh,
                    canonical=canonical,
                )
            ),
        )  # fmt: skip
        return served

    def _known_workloads(self) -> dict[tuple[str, IPAddress], WorkloadEntry]:
        """WorkloadEntries by address, for inline endpoints that mean one of them."""
        if not any(items[0].entry.endpoints for items in self._hosts.values()):
            return {}
        return {
            (item.network or self._mesh.network, address): item
            for item in self._objects.workloads
            for address in item.addresses
        }

    def _serve_endpoints(
        self, items: Sequence[_Host], known: Mapping[tuple[str, IPAddress], WorkloadEntry]
    ) -> tuple[ServedResource, ...]:
        entry = items[0].entry
        places = [
            (endpoint.network or self._mesh.network, endpoint.address)
            for endpoint in entry.endpoints
            if endpoint.address is not None
        ]
        meant = {place: known[place] for place in places if place in known}
        namespaces = [self._objects.namespaces.get(item.meta.namespace) for item in meant.values()]
        well = [self._objects.healthy(item) for item in meant.values()]
        localities = [self._objects.places.get(item.node, NOWHERE) for item in meant.values()]

        def make() -> tuple[ServedResource, ...]:
            found = {
                place: KnownWorkload(
                    item, namespace.labels if namespace else _NO_LABELS, locality, healthy
                )
                for (place, item), namespace, locality, healthy in zip(
                    meant.items(), namespaces, localities, well, strict=True
                )
            }
            hosts = [item.host for item in items]
            return tuple(map(_resource, render_endpoints(entry, hosts, found, self._mesh)))

        inputs = (
            *(entry, self._mesh, *(item.host for item in items)),
            *(*meant.values(), *namespaces, *localities, *well),
        )
        served: tuple[ServedResource, ...] = self._memory.remember(
            "endpoints of", entry.meta.key, inputs, make
        )
        return served


def _resource(item: Service | Workload) -> ServedResource:
    groups = tuple(item.services) if isinstance(item, Workload) else ()
    return served_resource(address_name(item), encode_address(item), address_aliases(item), groups)
