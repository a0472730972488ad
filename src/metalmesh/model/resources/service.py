"""Service (v1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metalmesh.model.resources.meta import parse_labels
from metalmesh.model.resources.reader import PORT_MAX, read_address, shown

if TYPE_CHECKING:
    from metalmesh.model.resources.meta import Metadata
    from metalmesh.model.resources.reader import Reader
    from metalmesh.model.workload import IPAddress

_HEADLESS: Final = "None"
_TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer")
_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
DISTRIBUTIONS: Final = ("PreferClose", "PreferSameZone", "PreferSameNode")
#: meaningful to kube-proxy or a cloud only
_IGNORED: Final = (
    "allocateLoadBalancerNodePorts", "externalIPs", "externalTrafficPolicy",
    "healthCheckNodePort", "ipFamilyPolicy", "loadBalancerClass", "loadBalancerIP",
    "loadBalancerSourceRanges", "sessionAffinity", "sessionAffinityConfig",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port; ``target`` is a number, or the name of a port of each workload."""

    name: str
    protocol: str
    port: int
    target: int | str


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceResource:
    """One service."""

    meta: Metadata
    selector: tuple[tuple[str, str], ...] = ()
    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[IPAddress, ...] = ()
    headless: bool = False
    ip_families: tuple[str, ...] = ()
    internal_traffic_policy: str = "Cluster"
    traffic_distribution: str = ""
    publish_not_ready: bool = False


def parse_service(reader: Reader, meta: Metadata) -> ServiceResource:
    """Read a Service; ExternalName has no workloads and is refused."""
    reader.ignore("status")
    with reader.child("spec") as spec:
        spec.ignore(*_IGNORED)
        kind = spec.string("type", "ClusterIP")
        if kind == "ExternalName":
            spec.fail("type", "ExternalName is not supported; use a ServiceEntry or DNS")
        elif kind not in _TYPES:
            spec.fail("type", f"must be one of {', '.join(_TYPES)}, got {shown(kind)}")
        spec.ignore(*(["externalName"] if kind == "ExternalName" else []))
        headless, addresses = _cluster_ips(spec)
        return ServiceResource(
            meta=meta,
            selector=tuple(sorted(parse_labels(spec, "selector").items())),
            ports=_ports(spec),
            cluster_ips=addresses,
            headless=headless,
            ip_families=spec.strings("ipFamilies"),
            internal_traffic_policy=spec.choice(
                "internalTrafficPolicy", ("Cluster", "Local"), "Cluster"
            ),
            traffic_distribution=spec.choice("trafficDistribution", DISTRIBUTIONS),
            publish_not_ready=spec.value("publishNotReadyAddresses", bool) or False,
        )


def _cluster_ips(spec: Reader) -> tuple[bool, tuple[IPAddress, ...]]:
    """``clusterIPs``, of which ``clusterIP`` must be the first."""
    single = spec.string("clusterIP")
    texts = list(spec.strings("clusterIPs")) or ([single] if single else [])
    if single and texts[0] != single:
        spec.fail("clusterIPs[0]", f"must equal clusterIP {shown(single)}")
    if _HEADLESS in texts:
        if len(texts) > 1:
            spec.fail("clusterIPs", "None must stand alone")
        return True, ()
    found = [read_address(spec, f"clusterIPs[{n}]", text) for n, text in enumerate(texts)]
    return False, tuple(address for address in found if address is not None)


def _ports(spec: Reader) -> tuple[ServicePort, ...]:
    ports = []
    seen: dict[tuple[str, int], str] = {}
    names: set[str] = set()
    readers = spec.children("ports")
    for reader in readers:
        with reader:
            reader.ignore("nodePort", "appProtocol")
            name = reader.string("name")
            protocol = reader.choice("protocol", _PROTOCOLS, "TCP")
            if not reader.has("port"):
                reader.fail("port", "is required")
            port = reader.port("port")
            if len(readers) > 1 and not name:
                reader.fail("name", "is required when a service has several ports")
            if name in names and name:
                reader.fail("name", f"{shown(name)} is used twice")
            if (protocol, port) in seen and port:
                reader.fail("port", f"{protocol} {port} is listed twice")
            names.add(name)
            seen[protocol, port] = name
            ports.append(ServicePort(name, protocol, port, _target(reader, port)))
    return tuple(ports)


def _target(reader: Reader, port: int) -> int | str:
    """``targetPort``: a number, a name, or absent for the same number."""
    if not reader.has("targetPort"):
        return port
    found = reader.value("targetPort", object)
    if isinstance(found, str) and found and not found.isdigit():
        return found
    if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= PORT_MAX:
        return found
    reader.fail("targetPort", f"must be 1 to {PORT_MAX} or a port name, got {shown(found)}")
    return port
