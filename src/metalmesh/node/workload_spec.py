"""Local workloads: WorkloadEntry objects, one per file, in the node's workloads directory.

Pure but for :func:`load_directory`. A wrong file never hides a right one, and of two workloads
that claim one address or one netns the one that is already up stays, else the first by file name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from metalmesh.constants import (
    ANNOTATION_BYPASS_INBOUND,
    ANNOTATION_DNS_CAPTURE,
    ANNOTATION_NETNS,
    HOST_NETNS,
    LABEL_DATAPLANE_MODE,
)
from metalmesh.errors import ResourceError, StoreError
from metalmesh.model.exclusions import NO_EXCLUSIONS, Exclusions
from metalmesh.model.resources.parse import ParsedObject, parse_documents
from metalmesh.model.resources.workload_entry import WorkloadEntry

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from metalmesh.model.resources.probe import Probe
    from metalmesh.model.workload import IPAddress

ANNOTATION_VIRTUAL_INTERFACES: Final = "istio.io/reroute-virtual-interfaces"
#: the node answers names of its own namespace, and forwards what comes through its links
_NOT_OF_HOSTS: Final = (ANNOTATION_DNS_CAPTURE, ANNOTATION_VIRTUAL_INTERFACES)
#: systemd instance names and file names: no escapes, no path separators
_NETNS: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,198}[a-z0-9])?\Z")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")


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
    probe: Probe | None = None
    exclusions: Exclusions = NO_EXCLUSIONS

    @property
    def is_host(self) -> bool:
        """Whether it runs in the machine's own namespace."""
        return self.netns == HOST_NETNS

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class LoadedSpecs:
    """What a directory holds: workloads by netns name, and what is wrong with the rest."""

    workloads: Mapping[str, LocalWorkload]
    errors: tuple[ResourceError, ...]
    #: the last good content of every file
    by_file: Mapping[str, LocalWorkload] = field(default_factory=dict)


def load_directory(
    directory: Path,
    cluster_id: str,
    running: Mapping[str, Collection[str]] | None = None,
    before: Mapping[str, LocalWorkload] | None = None,
) -> LoadedSpecs:
    """Read every ``*.yaml`` of a directory; ``running`` is netns name -> uid that is up.

    A file that has become wrong keeps what it said ``before``. :class:`StoreError` when the
    directory cannot be listed: that does not mean that there are no workloads.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".yaml")
    except OSError as error:
        raise StoreError(f"{directory} cannot be listed: {error.strerror}") from error
    by_file: dict[str, LocalWorkload] = {}
    errors: list[ResourceError] = []
    for path in paths:
        try:
            by_file[str(path)] = _load_file(path, cluster_id)
        except FileNotFoundError:
            continue  # removed since it was listed
        except ResourceError as error:
            errors.append(error)
            if before is not None and str(path) in before:
                by_file[str(path)] = before[str(path)]
    workloads, conflicts = resolve_conflicts(list(by_file.items()), running or {})
    return LoadedSpecs(workloads, (*errors, *conflicts), by_file)


def _load_file(path: Path, cluster_id: str) -> LocalWorkload:
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(str(path), "", "", f"cannot be read: {error}") from error
    return parse_local_workload(text, str(path), cluster_id)


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
                _fault(
                    source,
                    workload,
                    "",
                    f"{clashes[0]} belongs to workload {owner.key} of this node already; "
                    f"{owner.key} stays, give {workload.key} another",
                )
            )
            continue
        chosen[workload.netns] = workload
        owners.update(dict.fromkeys(claims, workload))
    return chosen, errors


def parse_local_workload(text: str, source: str, cluster_id: str) -> LocalWorkload:
    """Read a file of one WorkloadEntry; raise :class:`ResourceError` for anything else."""
    found = parse_documents(text, source)
    for item in found:
        if isinstance(item, ResourceError):
            raise item
    if len(found) != 1 or not isinstance(found[0], ParsedObject):
        raise ResourceError(source, "", "", f"must hold one WorkloadEntry, holds {len(found)}")
    entry = found[0].resource
    if not isinstance(entry, WorkloadEntry):
        raise ResourceError(source, found[0].id, "kind", "must be WorkloadEntry in this directory")
    meta = entry.meta
    uid = f"{cluster_id}/networking.istio.io/WorkloadEntry/{meta.namespace}/{meta.name}"
    annotations = meta.annotations
    workload = LocalWorkload(
        uid=uid,
        name=meta.name,
        namespace=meta.namespace,
        service_account=entry.service_account,
        netns=entry.netns,
        addresses=entry.addresses,
        captured=entry.labels.get(LABEL_DATAPLANE_MODE) != "none",
        bypass_inbound=annotations.get(ANNOTATION_BYPASS_INBOUND) == "true",
        dns_capture=_switch(annotations.get(ANNOTATION_DNS_CAPTURE)),
        virtual_interfaces=_names(annotations.get(ANNOTATION_VIRTUAL_INTERFACES, "")),
        labels=entry.labels,
        probe=entry.probe,
        exclusions=entry.exclusions,
    )
    _check(workload, annotations, source)
    return workload


def _check(workload: LocalWorkload, annotations: Mapping[str, str], source: str) -> None:
    """What only a workload of this node must fulfil."""
    where = f"metadata.annotations[{ANNOTATION_NETNS}]"
    if not _NETNS.match(workload.netns):
        raise _fault(
            source,
            workload,
            where,
            f"{workload.netns!r} must be lower-case letters, digits, dashes and dots",
        )
    if not workload.addresses:
        raise _fault(source, workload, "spec.address", "must be an IP address on this node")
    for address in workload.addresses:
        if address.is_link_local:
            raise _fault(source, workload, "spec.address", f"{address} is not routable")
    for name in workload.virtual_interfaces:
        if not _INTERFACE.match(name):
            raise _fault(
                source,
                workload,
                f"metadata.annotations[{ANNOTATION_VIRTUAL_INTERFACES}]",
                f"{name!r} is not the name of a network interface",
            )
    for key in _NOT_OF_HOSTS if workload.is_host else ():
        if annotations.get(key, "false") != "false":
            raise _fault(
                source,
                workload,
                f"metadata.annotations[{key}]",
                "is for workloads with a network namespace of their own; leave it out",
            )
    for key in (ANNOTATION_BYPASS_INBOUND, ANNOTATION_DNS_CAPTURE):
        if annotations.get(key, "true") not in {"true", "false"}:
            raise _fault(
                source,
                workload,
                f"metadata.annotations[{key}]",
                f'{annotations[key]!r} must be "true" or "false"',
            )


def _fault(source: str, workload: LocalWorkload, field_path: str, message: str) -> ResourceError:
    return ResourceError(source, f"WorkloadEntry {workload.key}", field_path, message)


def _switch(value: str | None) -> bool | None:
    return None if value is None else value == "true"


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))
