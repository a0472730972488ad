"""Which endpoints of a service a client may use now (istio-facts 6.2).

All that share the best rank come back; the choice among them is weighted random and made for each
connection by whoever opens it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalmesh.model.service import LoadBalancingMode, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from metalmesh.model.service import Service
    from metalmesh.model.workload import IPAddress, Workload
    from metalmesh.routing.state import MeshState


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that can take the connection."""

    workload: Workload
    port: int


def select_endpoints(
    state: MeshState,
    service: Service,
    service_port: int,
    source: Workload,
    dialable: Callable[[Workload], bool] | None = None,
) -> list[Candidate]:
    """The best-ranked endpoints of ``service`` for ``source``; empty when none is usable.

    ``dialable`` says whether a workload has an address that the client may use; one that is
    known by name only is looked up later.
    """
    found = [
        candidate
        for candidate in _candidates(state, service, service_port, source)
        if dialable is None or not candidate.workload.addresses or dialable(candidate.workload)
    ]
    balancing = service.load_balancing
    if balancing.mode in (LoadBalancingMode.STANDARD, LoadBalancingMode.PASSTHROUGH):
        return found
    preferences = balancing.preferences
    ranked = []
    for candidate in found:
        matched, bonus = rank(preferences, source, candidate.workload)
        if balancing.mode is LoadBalancingMode.STRICT and matched != len(preferences):
            continue
        ranked.append((matched + bonus, candidate))
    best = max((points for points, _ in ranked), default=0)
    return [candidate for points, candidate in ranked if points == best]


def usable_endpoints(
    state: MeshState, service: Service
) -> Iterator[tuple[Workload, Mapping[int, int]]]:
    """Endpoints of ``service`` that may be offered, with their port of each service port."""
    for uid, ports in sorted(state.endpoints.get(service.key, {}).items()):
        workload = state.workloads[uid]
        if workload.capacity > 0 and (workload.healthy or service.load_balancing.allow_unhealthy):
            yield workload, ports


def _candidates(
    state: MeshState, service: Service, service_port: int, source: Workload
) -> list[Candidate]:
    found = []
    for workload, ports in usable_endpoints(state, service):
        port = ports.get(service_port) or service.ports.get(service_port, 0)
        known = bool(workload.addresses or workload.hostname)
        if port and known and workload.network == source.network:
            found.append(Candidate(workload, port))
    return found


def rank(preferences: Sequence[Scope], source: Workload, destination: Workload) -> tuple[int, int]:
    """How many leading preferences match, and the bonus for the own network.

    A leading Network preference is not a hurdle: an endpoint elsewhere may still score by the
    scopes after it, but every endpoint of the own network outranks it.
    """
    matched = bonus = 0
    network_first = bool(preferences) and preferences[0] is Scope.NETWORK
    for scope in preferences:
        same = _scope_value(scope, source) == _scope_value(scope, destination)
        if scope is Scope.NETWORK and network_first:
            if not same:
                continue
            bonus = len(preferences) - 1
        if not same:
            break
        matched += 1
    return matched, bonus


def _scope_value(scope: Scope, workload: Workload) -> str:
    match scope:
        case Scope.REGION:
            return workload.locality.region
        case Scope.ZONE:
            return workload.locality.zone
        case Scope.SUBZONE:
            return workload.locality.subzone
        case Scope.NODE:
            return workload.node
        case Scope.CLUSTER:
            return workload.cluster_id
        case Scope.NETWORK:
            return workload.network


def choose_address(
    workload: Workload, wanted: IPAddress, ip_families: str = ""
) -> IPAddress | None:
    """The address of ``workload`` to dial for a client that asked for ``wanted``.

    That very address when it is one of the workload's; else one of the service's families
    (``IPv4``, ``IPv6``), the client's family first.
    """
    if wanted in workload.addresses:
        return wanted
    allowed = [
        address
        for address in workload.addresses
        if ip_families not in ("IPv4", "IPv6") or f"IPv{address.version}" == ip_families
    ]
    return min(allowed, key=lambda address: address.version != wanted.version, default=None)
