"""Local workloads: WorkloadEntry objects, one per file, in the node's workloads directory.

Pure but for :func:`load_directory`. A wrong file never hides a right one, and of two workloads
that claim one address or one netns the one that is already up stays, else the first by file name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import yaml

from metalmesh.constants import (
    ANNOTATION_BYPASS_INBOUND,
    ANNOTATION_DNS_CAPTURE,
    ANNOTATION_NETNS,
    LABEL_DATAPLANE_MODE,
)
from metalmesh.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from metalmesh.model.workload import IPAddress

ANNOTATION_ADDRESSES: Final = "ambient.metalmesh.io/addresses"
ANNOTATION_VIRTUAL_INTERFACES: Final = "istio.io/reroute-virtual-interfaces"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?\Z")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.:-]{1,15}\Z")
_API_GROUP: Final = "networking.istio.io/"
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalWorkload:
    """One workload of this node, as its WorkloadEntry declares it."""

    uid: str
    name: str
    namespace: str
    service_account: str
    netns: str
    addresses: tuple[IPAddress, ...]
    #: redirected and served by the ztunnel; everything but ``dataplane-mode: none``
    captured: bool = True
    bypass_inbound: bool = False
    #: None: as the node's configuration says
    dns_capture: bool | None = None
    virtual_interfaces: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class LoadedSpecs:
    """What a directory holds: workloads by netns name, and what is wrong with the rest."""

    workloads: Mapping[str, LocalWorkload]
    errors: tuple[ResourceError, ...]


def load_directory(
    directory: Path, cluster_id: str, running: Mapping[str, Collection[str]] | None = None
) -> LoadedSpecs:
    """Read every ``*.yaml`` of a directory; ``running`` is netns name -> uid and addresses."""
    parsed: list[tuple[str, LocalWorkload]] = []
    errors: list[ResourceError] = []
    for path in sorted(directory.glob("*.yaml")):
        try:
            parsed.append((str(path), _load_file(path, cluster_id)))
        except ResourceError as error:
            errors.append(error)
    workloads, conflicts = resolve_conflicts(parsed, running or {})
    return LoadedSpecs(workloads, (*errors, *conflicts))


def _load_file(path: Path, cluster_id: str) -> LocalWorkload:
    try:
        document = yaml.load(path.read_bytes(), Loader=_LOADER)  # noqa: S506 - a safe loader
    except (OSError, yaml.YAMLError) as error:
        raise ResourceError(str(path), "", "", f"cannot be read as YAML: {error}") from error
    return parse_local_workload(document, str(path), cluster_id)


def resolve_conflicts(
    parsed: list[tuple[str, LocalWorkload]], running: Mapping[str, Collection[str]]
) -> tuple[dict[str, LocalWorkload], list[ResourceError]]:
    """Let nobody take an address or netns of another; who is up goes first."""

    def is_up(workload: LocalWorkload) -> bool:
        return workload.uid in running.get(workload.netns, ())

    chosen: dict[str, LocalWorkload] = {}
    owners: dict[str, LocalWorkload] = {}
    errors: list[ResourceError] = []
    for source, workload in sorted(parsed, key=lambda item: (not is_up(item[1]), item[0])):
        claims = {f"netns {workload.netns}", f"name {workload.key}"}
        claims |= {f"address {address}" for address in workload.addresses}
        clashes = sorted(claims & owners.keys())
        if clashes:
            owner = owners[clashes[0]]
            errors.append(
                ResourceError(
                    source,
                    f"WorkloadEntry {workload.key}",
                    "",
                    f"{clashes[0]} belongs to workload {owner.key} of this node already; "
                    f"{owner.key} stays, give {workload.key} another",
                )
            )
            continue
        chosen[workload.netns] = workload
        owners.update(dict.fromkeys(claims, workload))
    return chosen, errors


def parse_local_workload(document: Any, source: str, cluster_id: str) -> LocalWorkload:
    """Read one WorkloadEntry; raise :class:`ResourceError` naming file, object and field."""
    if not isinstance(document, dict):
        raise ResourceError(source, "", "", "must hold one WorkloadEntry object")
    reader = _Reader(source, document)
    reader.require_kind()
    namespace, name = reader.name("namespace"), reader.name("name")
    annotations = reader.strings("metadata", "annotations")
    labels = {**reader.strings("metadata", "labels"), **reader.strings("spec", "labels")}
    return LocalWorkload(
        uid=f"{cluster_id}/networking.istio.io/WorkloadEntry/{namespace}/{name}",
        name=name,
        namespace=namespace,
        service_account=str(reader.spec.get("serviceAccount") or "default"),
        netns=reader.netns(annotations.get(ANNOTATION_NETNS, f"{namespace}-{name}")),
        addresses=reader.addresses(annotations.get(ANNOTATION_ADDRESSES, "")),
        captured=labels.get(LABEL_DATAPLANE_MODE) != "none",
        bypass_inbound=annotations.get(ANNOTATION_BYPASS_INBOUND) == "true",
        dns_capture=reader.switch(annotations, ANNOTATION_DNS_CAPTURE),
        virtual_interfaces=reader.interfaces(annotations.get(ANNOTATION_VIRTUAL_INTERFACES, "")),
        labels=labels,
    )


class _Reader:
    """Fields of one WorkloadEntry, each checked as it is taken."""

    def __init__(self, source: str, document: dict[str, Any]) -> None:
        self._source = source
        self._document = document
        self._object = f"{document.get('kind', 'object without kind')}"
        self.metadata = self._mapping(document, "metadata")
        self.spec = self._mapping(document, "spec")
        self._object += f" {self.metadata.get('namespace', '')}/{self.metadata.get('name', '')}"

    def fail(self, path: str, message: str) -> ResourceError:
        return ResourceError(self._source, self._object, path, message)

    def _mapping(self, parent: dict[str, Any], key: str, path: str = "") -> dict[str, Any]:
        value = parent.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fail(path or key, "must be a mapping")
        return value

    def require_kind(self) -> None:
        version = str(self._document.get("apiVersion", ""))
        if self._document.get("kind") != "WorkloadEntry" or not version.startswith(_API_GROUP):
            raise self.fail(
                "kind", "must be a WorkloadEntry of networking.istio.io/v1 in this directory"
            )

    def name(self, key: str) -> str:
        value = self.metadata.get(key)
        if not isinstance(value, str) or not _NAME.match(value) or len(value) > 63:
            raise self.fail(
                f"metadata.{key}",
                f"{value!r} must be 1 to 63 lower-case letters, digits, dashes or dots",
            )
        return value

    def strings(self, section: str, key: str) -> dict[str, str]:
        path = f"{section}.{key}"
        values = self._mapping(getattr(self, section), key, path)
        for name, value in values.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise self.fail(f"{path}[{name}]", f"{value!r} must be a string; quote it")
        return values

    def netns(self, value: str) -> str:
        if not _NAME.match(value) or len(value) > 200 or value == "host":
            raise self.fail(
                f"metadata.annotations[{ANNOTATION_NETNS}]",
                f"{value!r} must be a name of lower-case letters, digits, dashes and dots"
                + (
                    "; workloads of the machine's own namespace have no netns to make"
                    if value == "host"
                    else ""
                ),
            )
        return value

    def addresses(self, more: str) -> tuple[IPAddress, ...]:
        first = self.spec.get("address")
        if not isinstance(first, str):
            raise self.fail("spec.address", "must be the workload's IP address")
        path = "spec.address"
        found: list[IPAddress] = []
        for text in [first, *filter(None, (part.strip() for part in more.split(",")))]:
            try:
                address = ip_address(text)
            except ValueError:
                raise self.fail(
                    path, f"{text!r} is not an IP address; a netns workload needs one"
                ) from None
            if address.is_loopback or address.is_link_local or address.is_multicast:
                raise self.fail(path, f"{text} cannot be a workload's address on the network")
            if address not in found:
                found.append(address)
            path = f"metadata.annotations[{ANNOTATION_ADDRESSES}]"
        return tuple(found)

    def switch(self, annotations: Mapping[str, str], key: str) -> bool | None:
        value = annotations.get(key)
        if value not in {None, "true", "false"}:
            raise self.fail(f"metadata.annotations[{key}]", f'{value!r} must be "true" or "false"')
        return None if value is None else value == "true"

    def interfaces(self, text: str) -> tuple[str, ...]:
        names = tuple(filter(None, (part.strip() for part in text.split(","))))
        for name in names:
            if not _INTERFACE.match(name):
                raise self.fail(
                    f"metadata.annotations[{ANNOTATION_VIRTUAL_INTERFACES}]",
                    f"{name!r} is not the name of a network interface",
                )
        return names
