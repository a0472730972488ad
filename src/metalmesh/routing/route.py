"""From an original destination to a way there (istio-facts 2.10, 6.1).

Order: service by virtual address, workload by address, service by virtual range; a service's or
workload's waypoint comes before its endpoints. An address of a meshed workload leads to nobody
else, whatever other services claim it (Istio lets the service have it). What is in the mesh is
never reached around it: a service without a usable endpoint, or with a waypoint that is not known,
is an error and not passthrough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from metalmesh.constants import ILLEGAL_PORTS, PORT_HBONE
from metalmesh.model.service import LoadBalancingMode
from metalmesh.model.workload import NamespacedHostname, TunnelProtocol
from metalmesh.routing.endpoints import Candidate, choose_address, select_endpoints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from metalmesh.model.service import Service
    from metalmesh.model.workload import GatewayAddress, IPAddress, Workload
    from metalmesh.routing.state import MeshState


class RouteKind(Enum):
    """How the connection is carried."""

    HBONE = "hbone"
    TCP = "tcp"
    #: a service with endpoints inside and outside of the mesh: hops without authority are plain
    MIXED = "mixed"
    PASSTHROUGH = "passthrough"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hop:
    """One endpoint as it is dialled."""

    workload: Workload
    #: ``ip:port`` to dial; "" while the workload's hostname is not resolved
    address: str
    #: ``:authority`` of the CONNECT; "" for plain TCP
    authority: str = ""
    #: identities that its certificate may carry
    identities: tuple[str, ...] = ()
    #: port at the workload, for when its hostname is resolved
    target_port: int = 0
    #: for when others fail: a further address of a workload that is there already
    fallback: bool = False

    @property
    def weight(self) -> int:
        """Share among the endpoints of one route."""
        return 0 if self.fallback else self.workload.capacity


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The decision for connections to one address and port."""

    kind: RouteKind
    error: str = ""
    service: Service | None = None
    hops: tuple[Hop, ...] = ()

    @property
    def hostnames(self) -> list[str]:
        """Names that must be resolved (:func:`with_addresses`) before anything is dialled."""
        return sorted({hop.workload.hostname for hop in self.hops if not hop.address})


def find_route(state: MeshState, source: Workload, address: IPAddress, port: int) -> Route:
    """Decide where a connection of the local workload ``source`` goes."""
    if address.is_loopback and port in ILLEGAL_PORTS:
        return _error("attempted recursive call to ourselves")
    workload = state.workload_at(source.network, address)
    service = state.service_at(source.network, address, source.namespace)
    if service is not None and not _belongs_elsewhere(state, workload, service):
        return _to_service(state, source, service, address, port)
    if workload is not None:
        return _to_workload(state, source, workload, address, port)
    service = state.service_in_range(source.network, address, source.namespace)
    if service is not None:
        return _to_service(state, source, service, address, port)
    return Route(kind=RouteKind.PASSTHROUGH)


def _belongs_elsewhere(state: MeshState, workload: Workload | None, service: Service) -> bool:
    """Whether an address is a meshed workload's that ``service`` has nothing to do with."""
    if workload is None or workload.protocol is not TunnelProtocol.HBONE:
        return False
    return workload.uid not in state.endpoints.get(service.key, {})


def _to_workload(
    state: MeshState, source: Workload, workload: Workload, address: IPAddress, port: int
) -> Route:
    if workload.waypoint is not None and not _is_waypoint(state, source, workload.waypoint):
        return _via_waypoint(state, source, workload.waypoint, address, port, None)
    hop = _hop(workload, address, port, ())
    return Route(kind=_kind(hop), hops=(hop,))


def _is_waypoint(state: MeshState, source: Workload, gateway: GatewayAddress) -> bool:
    """Whether ``source`` is the waypoint itself, which must not be sent through itself."""
    candidates, _ = _gateway_workloads(state, source, gateway) or ([], ())
    return any(candidate.workload.uid == source.uid for candidate in candidates)


def _to_service(
    state: MeshState, source: Workload, service: Service, address: IPAddress, port: int
) -> Route:
    if service.waypoint is not None:
        return _via_waypoint(state, source, service.waypoint, address, port, service)
    if service.load_balancing.mode is LoadBalancingMode.PASSTHROUGH:
        return Route(kind=RouteKind.PASSTHROUGH, service=service)
    candidates = select_endpoints(
        state,
        service,
        port,
        source,
        lambda workload: choose_address(workload, address, service.ip_families) is not None,
    )
    hops = []
    for candidate in candidates:
        chosen = choose_address(candidate.workload, address, service.ip_families)
        if chosen is not None:
            hops.append(_hop(candidate.workload, chosen, candidate.port, service.subject_alt_names))
        else:
            hops.append(_unresolved_hop(candidate, service.subject_alt_names))
    return _service_route(service, hops, address, port)


def _service_route(service: Service, hops: list[Hop], address: IPAddress, port: int) -> Route:
    if not hops:
        return _error(f"no healthy upstream: {socket_text(address, port)}", service)
    kinds = {_kind(hop) for hop in hops}
    kind = kinds.pop() if len(kinds) == 1 else RouteKind.MIXED
    return Route(kind=kind, service=service, hops=tuple(hops))


def _unresolved_hop(candidate: Candidate, alt_names: tuple[str, ...]) -> Hop:
    workload = candidate.workload
    meshed = workload.protocol is TunnelProtocol.HBONE
    return Hop(
        workload=workload,
        address="",
        # told apart from plain endpoints by having one at all
        authority=f"{workload.hostname}:{candidate.port}" if meshed else "",
        identities=_identities(workload, alt_names) if meshed else (),
        target_port=candidate.port,
    )


def with_addresses(route: Route, resolved: Mapping[str, Sequence[IPAddress]]) -> Route:
    """Complete a route whose hostnames were looked up; endpoints without an answer fall away.

    The first address of each is the one to use, the others are fallbacks.
    """
    hops = []
    for hop in route.hops:
        if hop.address:
            hops.append(hop)
            continue
        for number, address in enumerate(resolved.get(hop.workload.hostname, ())):
            found = _hop(hop.workload, address, hop.target_port, hop.identities)
            hops.append(replace(found, fallback=number > 0))
    if not hops:
        uids = ", ".join(hop.workload.uid for hop in route.hops)
        return _error(f"no ip addresses were resolved for workload: {uids}", route.service)
    return replace(route, hops=tuple(hops))


def _via_waypoint(
    state: MeshState,
    source: Workload,
    gateway: GatewayAddress,
    address: IPAddress,
    port: int,
    service: Service | None,
) -> Route:
    """The waypoint gets the destination as the application dialled it."""
    found = _gateway_workloads(state, source, gateway)
    if found is None:
        return _error(f"unknown waypoint: {gateway.destination}", service)
    candidates, alt_names = found
    hops = []
    for candidate in candidates:
        dialled = choose_address(candidate.workload, address)
        if dialled is not None:
            hops.append(
                Hop(
                    workload=candidate.workload,
                    address=socket_text(dialled, candidate.port),
                    authority=socket_text(address, port),
                    identities=_identities(candidate.workload, alt_names),
                )
            )
    if not hops:
        return _error(f"no healthy upstream: waypoint {gateway.destination}", service)
    return Route(kind=RouteKind.HBONE, service=service, hops=tuple(hops))


def _gateway_workloads(
    state: MeshState, source: Workload, gateway: GatewayAddress
) -> tuple[list[Candidate], tuple[str, ...]] | None:
    """Workloads behind a gateway reference and its service's extra identities."""
    destination = gateway.destination
    if isinstance(destination, NamespacedHostname):
        service = state.services.get(str(destination))
    else:
        workload = state.workload_at(destination.network, destination.address)
        if workload is not None:
            return [Candidate(workload, gateway.hbone_mtls_port)], ()
        service = state.service_at(destination.network, destination.address, source.namespace)
    if service is None:
        return None
    found = select_endpoints(state, service, gateway.hbone_mtls_port, source)
    return found, service.subject_alt_names


def _hop(workload: Workload, address: IPAddress, port: int, alt_names: tuple[str, ...]) -> Hop:
    target = socket_text(address, port)
    if workload.protocol is not TunnelProtocol.HBONE:
        return Hop(workload=workload, address=target)
    return Hop(
        workload=workload,
        address=socket_text(address, PORT_HBONE),
        authority=target,
        identities=_identities(workload, alt_names),
    )


def _identities(workload: Workload, alt_names: tuple[str, ...]) -> tuple[str, ...]:
    """Own identity first, then the service's; each once. Other kinds of names are no identities."""
    own = str(workload.identity)
    extra = [n for n in alt_names if n.startswith("spiffe://") and n != own]
    return (own, *dict.fromkeys(extra))


def _kind(hop: Hop) -> RouteKind:
    return RouteKind.HBONE if hop.authority else RouteKind.TCP


def _error(text: str, service: Service | None = None) -> Route:
    return Route(kind=RouteKind.ERROR, error=text, service=service)


def socket_text(address: IPAddress, port: int) -> str:
    """``ip:port``, IPv6 in brackets."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
