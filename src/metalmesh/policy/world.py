"""What ``metalmesh why`` looks at, and how it finds who is meant; pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from metalmesh.constants import HOST_NETNS
from metalmesh.errors import MetalmeshError
from metalmesh.model.exclusions import NO_EXCLUSIONS, Exclusions
from metalmesh.model.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.service import Service
    from metalmesh.model.workload import IPAddress
    from metalmesh.routing.state import MeshState


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The mesh, and where what is in force in it came from."""

    state: MeshState
    #: policy's object id to the user's index of every rule in force (see Computation.origins)
    origins: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: uid to the PeerAuthentication that sets the workload's mode
    peer_authentications: Mapping[str, str] = field(default_factory=dict)
    #: uid to the AuthorizationPolicies meant for it that are not enforced as they are written:
    #: object id and reason
    reservations: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    #: uid to the workload's network namespace on its node
    netns: Mapping[str, str] = field(default_factory=dict)
    #: uid to what its capture leaves alone by its own annotations (its node may exclude more)
    exclusions: Mapping[str, Exclusions] = field(default_factory=dict)
    #: uids whose inbound plaintext is not captured
    bypassing: frozenset[str] = frozenset()
    #: NetworkPolicy holds inside of HBONE, too
    inner_enforcement: bool = True
    #: a policy that is listed and not known is skipped, as by Istio
    missing_skipped: bool = False

    def on_host(self, workload: Workload | None) -> bool:
        """Whether a workload runs in its machine's own namespace, which has no packet rules."""
        return workload is not None and self.netns.get(workload.uid) == HOST_NETNS

    def excluded(self, workload: Workload) -> Exclusions:
        """What the capture of a workload leaves alone."""
        return self.exclusions.get(workload.uid, NO_EXCLUSIONS)

    def origin(self, key: str, index: int) -> int:
        """The user's index of a rule."""
        known = self.origins.get(key, ())
        return known[index] if 0 <= index < len(known) else index


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where an application connects to."""

    text: str
    port: int
    #: every address the name stands for; one is tried, or each in turn for a headless service
    addresses: tuple[IPAddress, ...]
    service: Service | None = None
    workload: Workload | None = None


def name_of(workload: Workload) -> str:
    """``namespace/name``; the address of somebody outside of the mesh."""
    if workload.namespace:
        return f"{workload.namespace}/{workload.name}"
    return workload.name


def find_source(state: MeshState, text: str) -> Workload:
    """Who ``namespace/name``, a uid, a name that only one has, or an address is."""
    address = _address(text)
    if address is not None:
        known = state.workload_at("", address)
        return known or Workload(uid="", name=text, namespace="", addresses=(address,))
    found = _workloads_named(state, text.removeprefix("WorkloadEntry "))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(map(name_of, found))
        raise MetalmeshError(f"source {text!r} is one of {names}; give namespace/name")
    raise MetalmeshError(
        f"source {text!r} is no workload; give namespace/name of a WorkloadEntry, or an address"
    )


def find_target(state: MeshState, source: Workload, text: str) -> Target:
    """What ``HOST:PORT`` is for a client: a service, a workload or an address."""
    host, port = _split(text)
    address = _address(host)
    if address is not None:
        workload = state.workload_at(source.network, address)
        service = None if workload else state.service_at(source.network, address, source.namespace)
        return Target(
            text=text, port=port, addresses=(address,), service=service, workload=workload
        )
    service = _service_named(state, source.namespace, host)
    if service is not None:
        vips = tuple(vip.address for vip in service.vips)
        return Target(text=text, port=port, service=service, addresses=vips)
    found = _workloads_named(state, host)
    if len(found) == 1 and found[0].addresses:
        workload = found[0]
        return Target(text=text, port=port, workload=workload, addresses=workload.addresses)
    if found:
        what = "has no address" if len(found) == 1 else "is the name of several workloads"
        raise MetalmeshError(f"destination {host!r} {what}; give namespace/name or an address")
    raise MetalmeshError(
        f"destination {host!r} is neither a service nor a workload; of machines outside of the "
        "mesh give the address"
    )


def _workloads_named(state: MeshState, text: str) -> list[Workload]:
    if text in state.workloads:
        return [state.workloads[text]]
    namespace, slash, name = text.rpartition("/")
    return [
        item
        for _, item in sorted(state.workloads.items())
        if item.name == name and (not slash or item.namespace == namespace)
    ]


def _service_named(state: MeshState, namespace: str, host: str) -> Service | None:
    """A service by its full name, or as the resolver of a workload completes shorter ones."""
    wanted = host.rstrip(".")
    visible = [
        service
        for _, service in sorted(state.services.items())
        if not service.private or service.namespace == namespace
    ]
    exact = next((service for service in visible if service.hostname == wanted), None)
    return exact or next(
        (service for service in visible if wanted in _short_names(service, namespace)), None
    )


def _short_names(service: Service, namespace: str) -> set[str]:
    """What else a Service is called; a ServiceEntry's host has no short form."""
    name, place = service.name, service.namespace
    if not service.hostname.startswith(f"{name}.{place}.svc."):
        return set()
    names = {f"{name}.{place}", f"{name}.{place}.svc", f"{place}/{name}"}
    return names | {name} if place == namespace else names


def _split(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise MetalmeshError(f"destination {text!r} must be HOST:PORT, such as echo.demo:80")
    return host.strip("[]") if host.startswith("[") else host, int(port)


def _address(text: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
