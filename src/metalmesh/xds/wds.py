"""Codec of ``istio.workload.Address``: workloads and services (istio-facts 3.3).

Decoding accepts what ztunnel accepts and refuses what it refuses: addresses of a wrong length, a
gateway without destination, an unspecified routing preference, unknown enum numbers, legacy mTLS.
Unknown fields and extensions are ignored; ours carries what Istio's message has no field for.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage

from metalmesh.constants import DEFAULT_CLUSTER_ID, DEFAULT_TRUST_DOMAIN
from metalmesh.errors import ProtocolError
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
from metalmesh.proto import node_pb2
from metalmesh.proto import workload_pb2 as pb
from metalmesh.xds.fields import (
    parse_message,
    read_address,
    read_enum,
    read_network,
    read_port,
    required,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: extension of a service: names of its ports
PORT_NAMES: Final = "ambient.metalmesh.io/port-names"
_TYPE_PORT_NAMES: Final = "type.googleapis.com/metalmesh.node.v1.PortNames"

_PROTOCOLS: Final = {pb.NONE: TunnelProtocol.NONE, pb.HBONE: TunnelProtocol.HBONE}
_TYPES: Final = {pb.DEPLOYMENT: "deployment", pb.CRONJOB: "cronjob", pb.POD: "pod", pb.JOB: "job"}
_HEALTH: Final = {pb.HEALTHY: True, pb.UNHEALTHY: False}
_HOST_NETWORK: Final = {pb.STANDARD: False, pb.HOST_NETWORK: True}
_FAMILIES: Final = {pb.AUTOMATIC: "", pb.IPV4_ONLY: "IPv4", pb.IPV6_ONLY: "IPv6", pb.DUAL: "Dual"}
_SCOPES: Final = {
    pb.LoadBalancing.REGION: Scope.REGION,
    pb.LoadBalancing.ZONE: Scope.ZONE,
    pb.LoadBalancing.SUBZONE: Scope.SUBZONE,
    pb.LoadBalancing.NODE: Scope.NODE,
    pb.LoadBalancing.CLUSTER: Scope.CLUSTER,
    pb.LoadBalancing.NETWORK: Scope.NETWORK,
}
_MODES: Final = {
    pb.LoadBalancing.UNSPECIFIED_MODE: LoadBalancingMode.STANDARD,
    pb.LoadBalancing.STRICT: LoadBalancingMode.STRICT,
    pb.LoadBalancing.FAILOVER: LoadBalancingMode.FAILOVER,
    pb.LoadBalancing.PASSTHROUGH: LoadBalancingMode.PASSTHROUGH,
}
_HEALTH_POLICIES: Final = {pb.LoadBalancing.ONLY_HEALTHY: False, pb.LoadBalancing.ALLOW_ALL: True}


def _number(table: Mapping[Any, object], value: object) -> Any:
    """The wire number of ``value``, the other way through a decoding table."""
    for number, candidate in table.items():
        if candidate == value:
            return number
    raise ProtocolError(f"{value!r} has no number on the wire; use one of {list(table.values())}")


# --- both kinds ------------------------------------------------------------------------------


def address_name(item: Workload | Service) -> str:
    """The resource name: a workload's uid, a service's ``namespace/hostname``."""
    return item.uid if isinstance(item, Workload) else item.key


def address_aliases(item: Workload | Service) -> tuple[str, ...]:
    """The names ``network/IP`` under which the resource may be asked for on demand."""
    if isinstance(item, Service):
        return tuple(str(vip) for vip in item.vips)
    if item.host_network:
        return ()
    return tuple(f"{item.network}/{address}" for address in item.addresses)


def encode_address(item: Workload | Service) -> bytes:
    """Encode one ``istio.workload.Address``; equal items give equal bytes."""
    if isinstance(item, Workload):
        message = pb.Address(workload=encode_workload(item))
    else:
        message = pb.Address(service=encode_service(item))
    return message.SerializeToString(deterministic=True)


def decode_address(data: bytes, name: str) -> Workload | Service:
    """Decode one ``istio.workload.Address``; ``name`` is the resource's name in the response."""
    try:
        message = parse_message(pb.Address, data)
        kind = message.WhichOneof("type")
        if kind == "workload":
            return _workload(message.workload)
        if kind == "service":
            return _service(message.service)
        raise ProtocolError("type: neither workload nor service is set")
    except ProtocolError as error:
        raise ProtocolError(f"{name}: {error}") from error


# --- workloads -------------------------------------------------------------------------------


def encode_workload(workload: Workload) -> pb.Workload:
    """Encode a workload; every field is filled, also where Istio elides a default."""
    message = pb.Workload(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        addresses=[address.packed for address in workload.addresses],
        hostname=workload.hostname,
        network=workload.network,
        tunnel_protocol=_number(_PROTOCOLS, workload.protocol),
        trust_domain=workload.trust_domain,
        service_account=workload.service_account,
        node=workload.node,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        workload_type=_number(_TYPES, workload.workload_type),
        workload_name=workload.workload_name,
        native_tunnel=workload.native_tunnel,
        authorization_policies=workload.authorization_policies,
        status=_number(_HEALTH, workload.healthy),
        cluster_id=workload.cluster_id,
        network_mode=_number(_HOST_NETWORK, workload.host_network),
    )
    if workload.locality != Locality():
        message.locality.region = workload.locality.region
        message.locality.zone = workload.locality.zone
        message.locality.subzone = workload.locality.subzone
    if workload.capacity != 1:
        message.capacity.value = workload.capacity
    if workload.waypoint is not None:
        message.waypoint.CopyFrom(_encode_gateway(workload.waypoint))
    for key, ports in workload.services.items():
        message.services[key].CopyFrom(pb.PortList(ports=_encode_ports(ports)))
    return message


def decode_workload(message: pb.Workload) -> Workload:
    """Decode a workload; the error names its uid."""
    try:
        return _workload(message)
    except ProtocolError as error:
        raise ProtocolError(f"{message.uid}: {error}") from error


def _workload(message: pb.Workload) -> Workload:
    return Workload(
        uid=required(message.uid, "uid"),
        name=message.name,
        namespace=message.namespace,
        addresses=tuple(
            read_address(data, f"addresses[{index}]")
            for index, data in enumerate(message.addresses)
        ),
        hostname=message.hostname,
        network=message.network,
        protocol=read_enum(message.tunnel_protocol, _PROTOCOLS, "tunnel_protocol"),
        trust_domain=message.trust_domain or DEFAULT_TRUST_DOMAIN,
        service_account=message.service_account or "default",
        node=message.node,
        workload_name=message.workload_name,
        workload_type=_TYPES.get(message.workload_type, "deployment"),
        canonical_name=message.canonical_name,
        canonical_revision=message.canonical_revision,
        cluster_id=message.cluster_id or DEFAULT_CLUSTER_ID,
        locality=Locality(message.locality.region, message.locality.zone, message.locality.subzone),
        healthy=read_enum(message.status, _HEALTH, "status"),
        host_network=read_enum(message.network_mode, _HOST_NETWORK, "network_mode"),
        native_tunnel=message.native_tunnel,
        capacity=message.capacity.value if message.HasField("capacity") else 1,
        waypoint=_gateway(message.waypoint, "waypoint") if message.HasField("waypoint") else None,
        services=_services(message),
        authorization_policies=tuple(message.authorization_policies),
    )


def _services(message: pb.Workload) -> Mapping[str, Mapping[int, int]]:
    services = {}
    for key, ports in message.services.items():
        if "/" not in key:
            raise ProtocolError(f"services[{key}]: a key is namespace/hostname")
        services[key] = _ports(ports.ports, f"services[{key}]")
    return MappingProxyType(services)


# --- services --------------------------------------------------------------------------------


def encode_service(service: Service) -> pb.Service:
    """Encode a service."""
    message = pb.Service(
        name=service.name,
        namespace=service.namespace,
        hostname=service.hostname,
        addresses=[
            pb.NetworkAddress(network=vip.network, address=vip.address.packed)
            for vip in service.vips
        ],
        ports=_encode_ports(service.ports),
        subject_alt_names=service.subject_alt_names,
        ip_families=_number(_FAMILIES, service.ip_families),
        canonical=service.canonical,
        visibility=pb.Service.NAMESPACE if service.private else pb.Service.PUBLIC,
    )
    message.addresses.extend(
        pb.NetworkAddress(
            network=item.network,
            address=item.cidr.network_address.packed,
            length=item.cidr.prefixlen,
        )
        for item in service.cidr_vips
    )
    if service.port_names:
        message.extensions.append(_encode_port_names(service.port_names))
    if service.waypoint is not None:
        message.waypoint.CopyFrom(_encode_gateway(service.waypoint))
    if service.load_balancing != LoadBalancing():
        balancing = service.load_balancing
        message.load_balancing.CopyFrom(
            pb.LoadBalancing(
                routing_preference=[_number(_SCOPES, scope) for scope in balancing.preferences],
                mode=_number(_MODES, balancing.mode),
                health_policy=_number(_HEALTH_POLICIES, balancing.allow_unhealthy),
            )
        )
    return message


def decode_service(message: pb.Service) -> Service:
    """Decode a service; the error names its key."""
    try:
        return _service(message)
    except ProtocolError as error:
        raise ProtocolError(f"{message.namespace}/{message.hostname}: {error}") from error


def _service(message: pb.Service) -> Service:
    vips, cidr_vips = _vips(message)
    return Service(
        name=message.name,
        namespace=message.namespace,
        hostname=required(message.hostname, "hostname"),
        vips=vips,
        cidr_vips=cidr_vips,
        ports=_ports(message.ports, "ports"),
        port_names=_port_names(message.extensions),
        subject_alt_names=tuple(message.subject_alt_names),
        waypoint=_gateway(message.waypoint, "waypoint") if message.HasField("waypoint") else None,
        load_balancing=_load_balancing(message.load_balancing),
        ip_families=read_enum(message.ip_families, _FAMILIES, "ip_families"),
        canonical=message.canonical,
        private=message.visibility == pb.Service.NAMESPACE,
    )


def _encode_port_names(port_names: Mapping[str, int]) -> pb.Extension:
    data = node_pb2.PortNames(tcp=port_names).SerializeToString(deterministic=True)
    config = AnyMessage(type_url=_TYPE_PORT_NAMES, value=data)
    return pb.Extension(name=PORT_NAMES, config=config)


def _port_names(extensions: Iterable[pb.Extension]) -> Mapping[str, int]:
    for extension in extensions:
        if extension.name == PORT_NAMES:
            names = parse_message(node_pb2.PortNames, extension.config.value)
            return MappingProxyType({name: read_port(p, name) for name, p in names.tcp.items()})
    return MappingProxyType({})


def _vips(message: pb.Service) -> tuple[tuple[NetworkAddress, ...], tuple[NetworkCidr, ...]]:
    """Host addresses and ranges apart: no length, 32 or 128 is a host (istio-facts 3.3)."""
    hosts, ranges = [], []
    for index, item in enumerate(message.addresses):
        where = f"addresses[{index}]"
        address = read_address(item.address, where)
        if not item.HasField("length") or item.length == address.max_prefixlen:
            hosts.append(NetworkAddress(item.network, address))
        else:
            cidr = read_network(item.address, item.length, where)
            ranges.append(NetworkCidr(item.network, cidr))
    return tuple(hosts), tuple(ranges)


def _load_balancing(message: pb.LoadBalancing) -> LoadBalancing:
    return LoadBalancing(
        mode=read_enum(message.mode, _MODES, "load_balancing.mode"),
        preferences=tuple(
            read_enum(scope, _SCOPES, "load_balancing.routing_preference")
            for scope in message.routing_preference
        ),
        allow_unhealthy=read_enum(
            message.health_policy, _HEALTH_POLICIES, "load_balancing.health_policy"
        ),
    )


# --- parts -----------------------------------------------------------------------------------


def _encode_ports(ports: Mapping[int, int]) -> list[pb.Port]:
    return [
        pb.Port(service_port=service_port, target_port=target_port)
        for service_port, target_port in sorted(ports.items())
    ]


def _ports(ports: Iterable[pb.Port], where: str) -> Mapping[int, int]:
    return MappingProxyType(
        {
            read_port(port.service_port, f"{where}.service_port"): read_port(
                port.target_port, f"{where}.target_port"
            )
            for port in ports
        }
    )


def _encode_gateway(gateway: GatewayAddress) -> pb.GatewayAddress:
    destination = gateway.destination
    message = pb.GatewayAddress(hbone_mtls_port=gateway.hbone_mtls_port)
    if isinstance(destination, NamespacedHostname):
        message.hostname.namespace = destination.namespace
        message.hostname.hostname = destination.hostname
    else:
        message.address.network = destination.network
        message.address.address = destination.address.packed
    return message


def _gateway(message: pb.GatewayAddress, where: str) -> GatewayAddress:
    kind = message.WhichOneof("destination")
    destination: NetworkAddress | NamespacedHostname
    if kind == "hostname":
        destination = NamespacedHostname(message.hostname.namespace, message.hostname.hostname)
    elif kind == "address":
        destination = NetworkAddress(
            message.address.network, read_address(message.address.address, f"{where}.address")
        )
    else:
        raise ProtocolError(f"{where}.destination: neither hostname nor address is set")
    return GatewayAddress(destination, read_port(message.hbone_mtls_port, f"{where}.port"))
