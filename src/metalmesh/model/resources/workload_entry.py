"""WorkloadEntry (networking.istio.io/v1): where a workload is and who it is."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from metalmesh.constants import (
    ANNOTATION_EXCLUDE_INBOUND_PORTS,
    ANNOTATION_EXCLUDE_OUTBOUND_CIDRS,
    ANNOTATION_EXCLUDE_OUTBOUND_PORTS,
    ANNOTATION_NETNS,
    ANNOTATION_NODE,
    ANNOTATION_PROBE,
)
from metalmesh.model.exclusions import NO_EXCLUSIONS, Exclusions, parse_exclusions
from metalmesh.model.resources.meta import parse_labels
from metalmesh.model.resources.probe import Probe, parse_probe
from metalmesh.model.resources.reader import PORT_MAX, shown
from metalmesh.model.workload import Locality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.resources.meta import Metadata
    from metalmesh.model.resources.reader import Reader
    from metalmesh.model.workload import IPAddress

#: further addresses besides ``spec.address``, comma-separated (the second family)
ANNOTATION_ADDRESSES: Final = "ambient.metalmesh.io/addresses"
WEIGHT_MAX: Final = 2**32 - 1
HOSTNAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?(\.[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*\.?\Z"
)
_NODE: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_ACCOUNT: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadEntry:
    """One workload."""

    meta: Metadata
    addresses: tuple[IPAddress, ...] = ()
    #: instead of addresses: a name that clients resolve
    hostname: str = ""
    #: metadata's labels with those of the spec on top: what selectors see
    labels: Mapping[str, str]
    service_account: str = "default"
    #: port name to number
    ports: Mapping[str, int]
    network: str = ""
    locality: Locality = field(default_factory=Locality)
    weight: int = 1
    #: how its node finds out whether it is well; None: it is
    probe: Probe | None = None
    #: what its capture leaves alone, besides what its node excludes for everybody
    exclusions: Exclusions = NO_EXCLUSIONS

    @property
    def node(self) -> str:
        """The machine it is placed on; "" for an address outside the mesh's machines."""
        return self.meta.annotations.get(ANNOTATION_NODE, "")

    @property
    def netns(self) -> str:
        """Its network namespace on that machine; ``host`` is the machine's own."""
        default = f"{self.meta.namespace}-{self.meta.name}"
        return self.meta.annotations.get(ANNOTATION_NETNS, default)


def parse_workload_entry(reader: Reader, meta: Metadata) -> WorkloadEntry:
    """Read a WorkloadEntry."""
    reader.ignore("status")
    with reader.child("spec") as spec:
        addresses, hostname = _addresses(spec, meta)
        _check_node(spec, meta)
        probe = _probe(spec, meta)
        exclusions = _exclusions(spec, meta)
        account = read_account(spec)
        labels = parse_labels(spec, "labels")
        return WorkloadEntry(
            meta=meta,
            addresses=addresses,
            hostname=hostname,
            labels=MappingProxyType({**meta.labels, **labels}),
            service_account=account,
            ports=read_ports(spec),
            network=spec.string("network"),
            locality=read_locality(spec),
            weight=spec.integer("weight", 0, WEIGHT_MAX) or 1,
            probe=probe,
            exclusions=exclusions,
        )


def is_hostname(text: str) -> bool:
    """Whether ``text`` is a DNS name and cannot be meant as an address."""
    return HOSTNAME.match(text) is not None and re.fullmatch(r"[\d.]+", text) is None


def read_account(spec: Reader) -> str:
    """``serviceAccount``, by default ``default``."""
    account = spec.string("serviceAccount") or "default"
    if not _ACCOUNT.match(account):
        spec.fail("serviceAccount", f"{shown(account)} must be lower-case as in DNS")
    return account


def _check_node(spec: Reader, meta: Metadata) -> None:
    """A name that no node can have would place the workload nowhere, and say nothing."""
    node = meta.annotations.get(ANNOTATION_NODE)
    if node is not None and not _NODE.match(node):
        spec.faults.add(
            f"metadata.annotations[{ANNOTATION_NODE}]",
            f"{shown(node)} is not a node name: lower-case letters, digits, dots and dashes",
        )


def _probe(spec: Reader, meta: Metadata) -> Probe | None:
    text = meta.annotations.get(ANNOTATION_PROBE)
    if text is None:
        return None
    found = parse_probe(text, spec.faults.source, spec.faults.obj)
    if isinstance(found, Probe):
        return found
    spec.faults.errors.extend(found)
    return None


def _exclusions(spec: Reader, meta: Metadata) -> Exclusions:
    found, faults = parse_exclusions(
        meta.annotations,
        ANNOTATION_EXCLUDE_INBOUND_PORTS,
        ANNOTATION_EXCLUDE_OUTBOUND_PORTS,
        ANNOTATION_EXCLUDE_OUTBOUND_CIDRS,
    )
    for key, message in faults.items():
        spec.faults.add(f"metadata.annotations[{key}]", message)
    return found


def _addresses(spec: Reader, meta: Metadata) -> tuple[tuple[IPAddress, ...], str]:
    text = spec.required("address")
    if text.startswith("unix://"):
        spec.fail("address", "unix sockets are not supported; give an IP address")
        return (), ""
    try:
        addresses = [ipaddress.ip_address(text)]
    except ValueError:
        if text and (not is_hostname(text)):
            spec.fail("address", f"{shown(text)} is neither an IP address nor a host name")
        if ANNOTATION_ADDRESSES in meta.annotations:
            spec.fail("address", f"must be an IP address beside {ANNOTATION_ADDRESSES}")
        return (), text
    for more in filter(None, meta.annotations.get(ANNOTATION_ADDRESSES, "").split(",")):
        try:
            address = ipaddress.ip_address(more.strip())
        except ValueError:
            spec.faults.add(
                f"metadata.annotations[{ANNOTATION_ADDRESSES}]",
                f"{shown(more)} is not an IP address; separate addresses by commas",
            )
            continue
        if address not in addresses:
            addresses.append(address)
    for address in addresses:
        check_usable(spec, address)
    return tuple(addresses), ""


def check_usable(spec: Reader, address: IPAddress) -> None:
    """Refuse addresses that no workload can have."""
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        spec.fail("address", f"{address} cannot be the address of a workload")


def read_ports(spec: Reader) -> Mapping[str, int]:
    """``ports``: name to number."""
    ports = {}
    with spec.child("ports") as reader:
        for name in reader.names():
            ports[name] = reader.integer(name, 1, PORT_MAX)
    return MappingProxyType(ports)


def read_locality(spec: Reader) -> Locality:
    """``locality``: region/zone/subzone."""
    text = spec.string("locality")
    parts = text.split("/") if text else []
    if len(parts) > 3:
        spec.fail("locality", f"{shown(text)} has more than region/zone/subzone")
    return Locality(*parts[:3])
