"""Workloads, services and policies in ztunnel's own spelling: its local file and its dumps.

The local file (``LOCAL_XDS_PATH``, istio-facts 8.6) is for tests and labs: a ztunnel knows the mesh
from it without a control plane. Unknown keys are errors; what WDS carries and this ztunnel does not
use (application tunnels, network gateways, weighted waypoints) is accepted and not used, as there.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import yaml

from metalmesh.errors import ConfigError, ProtocolError
from metalmesh.model.authorization import Authorization
from metalmesh.model.service import LoadBalancing, LoadBalancingMode, Scope, Service
from metalmesh.model.workload import (
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    NetworkCidr,
    TunnelProtocol,
    Workload,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

E = TypeVar("E", bound=Enum)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LocalMesh:
    """What a local file says."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Authorization, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The ``staticConfig`` of a dump."""
        return {
            "workloads": [workload_to_dict(item) for item in self.workloads],
            "policies": [item.to_dict() for item in self.policies],
            "services": [service_to_dict(item) for item in self.services],
        }


# --- writing -----------------------------------------------------------------------------------


def workload_to_dict(workload: Workload) -> dict[str, Any]:
    """A workload as the local file has it."""
    locality = workload.locality
    return {
        "uid": workload.uid,
        "workloadIps": [str(address) for address in workload.addresses],
        **_gateway_to_dict(workload.waypoint),
        "protocol": workload.protocol.value,
        "name": workload.name,
        "namespace": workload.namespace,
        "trustDomain": workload.trust_domain,
        "serviceAccount": workload.service_account,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "clusterId": workload.cluster_id,
        "network": workload.network,
        "networkMode": "HostNetwork" if workload.host_network else "Standard",
        "node": workload.node,
        "hostname": workload.hostname,
        "nativeTunnel": workload.native_tunnel,
        "authorizationPolicies": list(workload.authorization_policies),
        "status": "Healthy" if workload.healthy else "Unhealthy",
        "locality": {key: value for key, value in dataclasses.asdict(locality).items() if value},
        "capacity": workload.capacity,
        "services": {
            key: {str(port): target for port, target in sorted(ports.items())}
            for key, ports in sorted(workload.services.items())
        },
    }


def service_to_dict(service: Service) -> dict[str, Any]:
    """A service as the local file has it."""
    balancing = service.load_balancing
    return {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [str(vip) for vip in service.vips],
        "cidrVips": [{"network": vip.network, "cidr": str(vip.cidr)} for vip in service.cidr_vips],
        "ports": {str(port): target for port, target in sorted(service.ports.items())},
        "subjectAltNames": list(service.subject_alt_names),
        **_gateway_to_dict(service.waypoint),
        "loadBalancer": {
            "routingPreferences": [scope.value for scope in balancing.preferences],
            "mode": balancing.mode.value,
            "healthPolicy": "AllowAll" if balancing.allow_unhealthy else "OnlyHealthy",
        },
        "ipFamilies": service.ip_families or None,
        "canonical": service.canonical,
        "visibility": "Namespace" if service.private else "Public",
    }


def _gateway_to_dict(gateway: GatewayAddress | None) -> dict[str, Any]:
    if gateway is None:
        return {}
    where = {"destination": str(gateway.destination), "hboneMtlsPort": gateway.hbone_mtls_port}
    return {"waypoint": where}


# --- reading -----------------------------------------------------------------------------------


def parse_local(text: str, source: str) -> LocalMesh:
    """Read a local file; raise :class:`ConfigError` naming file, entry and key."""
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    try:
        top = _Fields({} if body is None else body, "")
        found = LocalMesh(
            tuple(_Fields(item, where).read(_workload) for item, where in top.items("workloads")),
            tuple(_Fields(item, where).read(_service) for item, where in top.items("services")),
            tuple(map(Authorization.from_dict, (item for item, _ in top.items("policies")))),
        )
        top.finish()
    except (ProtocolError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error
    return found


class _Fields:
    """A mapping whose every key has to be taken."""

    def __init__(self, body: Any, where: str) -> None:
        if not isinstance(body, dict):
            raise ValueError(f"{where or 'file'}: must be a mapping, is {body!r}")
        self._left = dict(body)
        self._where = where

    def read(self, parse: Callable[[_Fields], T]) -> T:
        """Parse everything; what is left over is an unknown key."""
        found = parse(self)
        self.finish()
        return found

    def finish(self) -> None:
        """Complain about what nobody asked for."""
        if self._left:
            raise ValueError(f"{self._path(str(min(map(str, self._left))))}: unknown key")

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key; without a default it must be there."""
        value = self._left.pop(key, None)
        if value is None:
            if default is None:
                raise ValueError(f"{self._path(key)}: is missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self._path(key)}: must be {_WORDS[kind]}, is {value!r}")
        return value

    def choice(self, key: str, choices: Mapping[str, T], default: str) -> T:
        """One of several words."""
        word = self.take(key, str, default)
        if word not in choices:
            known = ", ".join(choices)
            raise ValueError(f"{self._path(key)}: must be one of {known}, is {word!r}")
        return choices[word]

    def items(self, key: str) -> list[tuple[Any, str]]:
        """Entries of a list, each with its place."""
        return [
            (item, f"{self._path(key)}[{index}]")
            for index, item in enumerate(self.take(key, list, []))
        ]

    def convert(self, key: str, convert: Callable[[str], T], *, required: bool = False) -> list[T]:
        """A list of texts, converted."""
        found = []
        for index, text in enumerate(self.take(key, list, None if required else [])):
            try:
                found.append(convert(str(text)))
            except ValueError as error:
                raise ValueError(f"{self._path(key)}[{index}]: {error}") from None
        return found

    def child(self, key: str, parse: Callable[[_Fields], T], default: T) -> T:
        """A mapping below."""
        body = self._left.pop(key, None)
        return default if body is None else _Fields(body, self._path(key)).read(parse)

    def ports(self, key: str, body: Any = None) -> Mapping[int, int]:
        """Port to port."""
        body = self.take(key, dict, {}) if body is None else body
        try:
            return MappingProxyType({int(port): int(target) for port, target in body.items()})
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"{self._path(key)}: must map ports to ports, is {body!r}") from None

    def ignore(self, *keys: str) -> None:
        """Keys that ztunnel knows and we do not use."""
        for key in keys:
            self._left.pop(key, None)

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


_WORDS: Final[dict[type, str]] = {
    str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping",
}  # fmt: skip
_PROTOCOLS: Final = {item.value: item for item in TunnelProtocol}
_MODES: Final = {item.value: item for item in LoadBalancingMode}
_SCOPES: Final = {item.value: item for item in Scope}
_FAMILIES: Final = {"": "", "IPv4": "IPv4", "IPv6": "IPv6", "Dual": "Dual"}


def _workload(entry: _Fields) -> Workload:
    entry.ignore("applicationTunnel", "networkGateway")
    services = entry.take("services", dict)
    return Workload(
        uid=entry.take("uid", str),
        name=entry.take("name", str, ""),
        namespace=entry.take("namespace", str),
        addresses=tuple(entry.convert("workloadIps", ipaddress.ip_address, required=True)),
        hostname=entry.take("hostname", str, ""),
        network=entry.take("network", str, ""),
        protocol=entry.choice("protocol", _PROTOCOLS, "TCP"),
        trust_domain=entry.take("trustDomain", str, ""),
        service_account=entry.take("serviceAccount", str, "default"),
        node=entry.take("node", str, ""),
        workload_name=entry.take("workloadName", str, ""),
        workload_type=entry.take("workloadType", str, "deployment"),
        canonical_name=entry.take("canonicalName", str, ""),
        canonical_revision=entry.take("canonicalRevision", str, ""),
        cluster_id=entry.take("clusterId", str, ""),
        locality=entry.child("locality", _locality, Locality()),
        healthy=entry.choice("status", {"Healthy": True, "Unhealthy": False}, "Healthy"),
        host_network=entry.choice(
            "networkMode", {"Standard": False, "HostNetwork": True}, "Standard"
        ),
        native_tunnel=entry.take("nativeTunnel", bool, default=False),
        capacity=entry.take("capacity", int, 1),
        waypoint=entry.child("waypoint", _gateway, None),
        services=MappingProxyType(
            {
                _service_key(key): entry.ports(f"services[{key}]", ports)
                for key, ports in services.items()
            }
        ),
        authorization_policies=tuple(entry.convert("authorizationPolicies", str)),
    )


def _service(entry: _Fields) -> Service:
    entry.ignore("weightedWaypoints", "endpoints")
    return Service(
        name=entry.take("name", str),
        namespace=entry.take("namespace", str),
        hostname=entry.take("hostname", str),
        vips=tuple(entry.convert("vips", _network_address)),
        cidr_vips=tuple(
            _Fields(item, where).read(_network_cidr) for item, where in entry.items("cidrVips")
        ),
        ports=entry.ports("ports"),
        subject_alt_names=tuple(entry.convert("subjectAltNames", str)),
        waypoint=entry.child("waypoint", _gateway, None),
        load_balancing=entry.child("loadBalancer", _load_balancing, LoadBalancing()),
        ip_families=entry.choice("ipFamilies", _FAMILIES, ""),
        canonical=entry.take("canonical", bool, default=False),
        private=entry.choice("visibility", {"Public": False, "Namespace": True}, "Public"),
    )


def _locality(entry: _Fields) -> Locality:
    return Locality(*(entry.take(key, str, "") for key in ("region", "zone", "subzone")))


def _load_balancing(entry: _Fields) -> LoadBalancing:
    def scope(text: str) -> Scope:
        if text not in _SCOPES:
            raise ValueError(f"must be one of {', '.join(_SCOPES)}, is {text!r}")
        return _SCOPES[text]

    return LoadBalancing(
        mode=entry.choice("mode", _MODES, "Standard"),
        preferences=tuple(entry.convert("routingPreferences", scope)),
        allow_unhealthy=entry.choice(
            "healthPolicy", {"OnlyHealthy": False, "AllowAll": True}, "OnlyHealthy"
        ),
    )


def _gateway(entry: _Fields) -> GatewayAddress | None:
    return GatewayAddress(
        _destination(entry.take("destination", str)), entry.take("hboneMtlsPort", int)
    )


def _destination(text: str) -> NetworkAddress | NamespacedHostname:
    """``network/IP`` if what follows the slash is one, else ``namespace/hostname``."""
    before, slash, after = text.partition("/")
    if not slash:
        raise ValueError(f"destination {text!r} must be NETWORK/IP or NAMESPACE/HOSTNAME")
    try:
        return NetworkAddress(before, ipaddress.ip_address(after))
    except ValueError:
        return NamespacedHostname(before, after)


def _network_address(text: str) -> NetworkAddress:
    network, slash, address = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} must be NETWORK/IP; the network may be empty")
    return NetworkAddress(network, ipaddress.ip_address(address))


def _network_cidr(entry: _Fields) -> NetworkCidr:
    return NetworkCidr(
        entry.take("network", str, ""), ipaddress.ip_network(entry.take("cidr", str))
    )


def _service_key(text: object) -> str:
    if not isinstance(text, str) or "/" not in text:
        raise ValueError(f"services: {text!r} must be NAMESPACE/HOSTNAME")
    return text
