"""ServiceEntry (networking.istio.io/v1): services that no Service object describes.

Checked as istiod's validation does; what Istio accepts and cannot work (an endpoint that is a unix
socket) is refused here with the remedy.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from metalmesh.model.resources.meta import parse_labels
from metalmesh.model.resources.reader import PORT_MAX, read_address, read_network, shown
from metalmesh.model.resources.service import ServicePort
from metalmesh.model.resources.workload_entry import (
    WEIGHT_MAX,
    check_usable,
    is_hostname,
    read_account,
    read_locality,
    read_ports,
)
from metalmesh.model.workload import Locality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.resources.meta import Metadata
    from metalmesh.model.resources.reader import Reader
    from metalmesh.model.workload import IPAddress

#: ``"false"``: no virtual address of the mesh's own choice
LABEL_AUTOALLOCATE: Final = "networking.istio.io/enable-autoallocate-ip"
_LOCATIONS: Final = ("MESH_EXTERNAL", "MESH_INTERNAL")
_PROTOCOLS: Final = (
    "TCP", "UDP", "HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TLS", "MONGO", "MYSQL", "REDIS",
)  # fmt: skip
_PORT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")


class Resolution(Enum):
    """How clients find the endpoints."""

    NONE = "NONE"
    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"

    @property
    def by_name(self) -> bool:
        """Whether endpoints may be names that are looked up."""
        return self in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)


@dataclass(frozen=True, kw_only=True, slots=True)
class InlineEndpoint:
    """One of ``endpoints``: an address, or a name to look up."""

    address: IPAddress | None = None
    hostname: str = ""
    ports: Mapping[str, int]
    labels: Mapping[str, str]
    service_account: str = "default"
    network: str = ""
    locality: Locality = field(default_factory=Locality)
    weight: int = 1

    @property
    def place(self) -> str:
        """Its address or name as text."""
        return self.hostname or str(self.address)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceEntry:
    """One ServiceEntry."""

    meta: Metadata
    hosts: tuple[str, ...]
    addresses: tuple[IPAddress, ...] = ()
    #: ranges among ``addresses``
    cidrs: tuple[IPNetwork, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    location: str = "MESH_EXTERNAL"
    resolution: Resolution = Resolution.NONE
    endpoints: tuple[InlineEndpoint, ...] = ()
    #: labels of WorkloadEntries that are its endpoints; None without workloadSelector
    selector: tuple[tuple[str, str], ...] | None = None
    export_to: tuple[str, ...] = ()
    subject_alt_names: tuple[str, ...] = ()

    @property
    def wants_address(self) -> bool:
        """Whether hosts without wildcard get a virtual address of the mesh's choice."""
        return (
            not self.addresses
            and not self.cidrs
            and self.resolution is not Resolution.NONE
            and self.meta.labels.get(LABEL_AUTOALLOCATE, "") != "false"
        )

    @property
    def private(self) -> bool:
        """Whether only its own namespace sees it; other namespaces cannot be told apart."""
        return bool(self.export_to) and set(self.export_to) <= {".", self.meta.namespace}

    @property
    def exported(self) -> bool:
        """Whether anybody sees it (``~`` is nobody)."""
        return set(self.export_to) != {"~"}


def parse_service_entry(reader: Reader, meta: Metadata) -> ServiceEntry:
    """Read a ServiceEntry."""
    reader.ignore("status")
    if not reader.has("spec"):
        reader.fail("spec", "is required")
    with reader.child("spec") as spec:
        resolution = Resolution(
            spec.choice("resolution", [item.value for item in Resolution], "NONE")
        )
        ports = _ports(spec)
        addresses, cidrs = _addresses(spec)
        entry = ServiceEntry(
            meta=meta,
            hosts=_hosts(spec),
            addresses=addresses,
            cidrs=cidrs,
            ports=ports,
            location=spec.choice("location", _LOCATIONS, _LOCATIONS[0]),
            resolution=resolution,
            endpoints=tuple(
                _endpoint(item, resolution, {port.name for port in ports})
                for item in spec.children("endpoints")
            ),
            selector=_selector(spec),
            export_to=_export_to(spec),
            subject_alt_names=spec.strings("subjectAltNames"),
        )
        _check(spec, entry)
    return entry


def _check(spec: Reader, entry: ServiceEntry) -> None:
    """What fields must be to each other."""
    resolution, endpoints = entry.resolution, entry.endpoints
    if entry.selector is not None and spec.has("endpoints"):
        spec.fail("workloadSelector", "cannot stand beside endpoints; use one of the two")
    if resolution is Resolution.NONE and endpoints:
        spec.fail("endpoints", "must be absent for resolution NONE; use STATIC or DNS")
    if resolution is Resolution.NONE and entry.selector is not None:
        spec.fail("workloadSelector", "has no effect with resolution NONE; use STATIC")
    if resolution is Resolution.DNS_ROUND_ROBIN and len(endpoints) > 1:
        spec.fail("endpoints", "at most one for resolution DNS_ROUND_ROBIN; use DNS")
    if entry.cidrs and resolution.by_name:
        spec.fail("addresses", "CIDRs are for resolution NONE or STATIC; give single addresses")
    if resolution.by_name and not endpoints and entry.selector is None:
        for index, host in enumerate(entry.hosts):
            if host.startswith("*"):
                spec.fail(
                    f"hosts[{index}]",
                    f"{shown(host)} cannot be looked up; give endpoints, or resolution NONE",
                )
    if resolution is Resolution.NONE:
        for index, port in enumerate(entry.ports):
            if port.target != port.port:
                spec.fail(
                    f"ports[{index}].targetPort",
                    "must be absent for resolution NONE: connections go where the client wanted",
                )


def _hosts(spec: Reader) -> tuple[str, ...]:
    if not spec.has("hosts"):
        spec.fail("hosts", "is required")
        return ()
    found: list[str] = []
    for index, text in enumerate(spec.strings("hosts")):
        host = text.lower().rstrip(".")
        if host == "*":
            spec.fail(f"hosts[{index}]", "must not be * alone; give a domain such as *.example.com")
        elif not is_hostname(host.removeprefix("*.")):
            spec.fail(f"hosts[{index}]", f"{shown(text)} is not a host name, nor *. and a domain")
        elif host in found:
            spec.fail(f"hosts[{index}]", f"{shown(text)} is listed twice")
        found.append(host)
    if not found:
        spec.fail("hosts", "must not be empty")
    return tuple(found)


def _addresses(spec: Reader) -> tuple[tuple[IPAddress, ...], tuple[IPNetwork, ...]]:
    hosts: list[IPAddress] = []
    ranges: list[IPNetwork] = []
    for index, text in enumerate(spec.strings("addresses")):
        name = f"addresses[{index}]"
        if "/" not in text:
            address = read_address(spec, name, text)
            if address is not None and address not in hosts:
                hosts.append(address)
            continue
        network = read_network(spec, name, text)
        if network is None:
            continue
        if network.num_addresses == 1:
            hosts.append(network.network_address)
        elif network.prefixlen == 0:
            spec.fail(name, f"{text} would take every destination; give a smaller range")
        elif network not in ranges:
            ranges.append(network)
    return tuple(dict.fromkeys(hosts)), tuple(ranges)


def _ports(spec: Reader) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    for reader in spec.children("ports"):
        with reader:
            number, name = reader.port("number"), reader.required("name")
            if not reader.has("number"):
                reader.fail("number", "is required")
            if name and not _PORT_NAME.match(name):
                reader.fail("name", f"{shown(name)} must be lower-case letters, digits and dashes")
            protocol = reader.string("protocol", "TCP").upper()
            if protocol not in _PROTOCOLS:
                reader.fail("protocol", f"must be one of {', '.join(_PROTOCOLS)}")
            if number and any(number == port.port for port in ports):
                reader.fail("number", f"{number} is listed twice")
            if name and any(name == port.name for port in ports):
                reader.fail("name", f"{shown(name)} is used twice")
            target = reader.integer("targetPort", 1, PORT_MAX) or number
            ports.append(ServicePort(name, protocol, number, target))
    return tuple(ports)


def _endpoint(reader: Reader, resolution: Resolution, names: set[str]) -> InlineEndpoint:
    with reader:
        address, hostname = _place(reader, resolution)
        ports = read_ports(reader)
        for name in ports:
            if name not in names:
                reader.fail(f"ports.{name[:63]}", "is no port of this ServiceEntry")
        return InlineEndpoint(
            address=address,
            hostname=hostname,
            ports=ports,
            labels=parse_labels(reader, "labels"),
            service_account=read_account(reader),
            network=reader.string("network"),
            locality=read_locality(reader),
            weight=reader.integer("weight", 0, WEIGHT_MAX) or 1,
        )


def _place(reader: Reader, resolution: Resolution) -> tuple[IPAddress | None, str]:
    text = reader.required("address")
    if text.startswith("unix://"):
        reader.fail("address", "unix sockets are not supported; give an IP address")
        return None, ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if text and not is_hostname(text):
            reader.fail("address", f"{shown(text)} is neither an IP address nor a host name")
        elif text and not resolution.by_name:
            reader.fail("address", f"{shown(text)} is a name; use resolution DNS, or an IP address")
        return None, text.lower().rstrip(".")
    check_usable(reader, address)
    return address, ""


def _selector(spec: Reader) -> tuple[tuple[str, str], ...] | None:
    if not spec.has("workloadSelector"):
        return None
    with spec.child("workloadSelector") as selector:
        labels = parse_labels(selector, "labels")
        if not labels:
            selector.fail("labels", "must not be empty")
    return tuple(sorted(labels.items()))


def _export_to(spec: Reader) -> tuple[str, ...]:
    found = spec.strings("exportTo")
    for index, text in enumerate(found):
        if text not in (".", "*", "~") and not _NAMESPACE.match(text):
            spec.fail(f"exportTo[{index}]", f"{shown(text)} must be ., *, ~ or a namespace")
    if len(found) > 1 and {"*", "~"} & set(found):
        spec.fail("exportTo", "* and ~ must stand alone")
    return found
