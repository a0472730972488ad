"""Decide which objects are in force; pure.

Rules: a valid object is never harmed by an invalid one; a file with an error keeps every object it
last had, except those it now defines validly; of two objects that claim one address the one that
had it keeps it, else the older one gets it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalmesh.controlplane.snapshot import AcceptedObject, Admission
from metalmesh.errors import ResourceError
from metalmesh.model.resources import (
    NodeResource,
    ParsedObject,
    ServiceResource,
    WorkloadEntry,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metalmesh.model.resources import Resource


@dataclass(frozen=True, slots=True)
class Scan:
    """What a reading of the store found."""

    #: file to its objects and errors
    files: Mapping[str, tuple[ParsedObject | ResourceError, ...]]
    #: file or directory that could not be read, to the reason
    unreadable: Mapping[str, str]


def admit(scan: Scan, previous: Mapping[str, AcceptedObject], now: str) -> Admission:
    """Decide on a scan, given what was in force; ``now`` is RFC 3339."""
    run = _Run(scan, previous, now)
    run.take_valid()
    run.keep_last_good()
    run.settle_claims()
    return Admission(
        {item.id: item for item in run.objects.values()},
        tuple(run.errors),
        frozenset(run.outdated),
    )


class _Run:
    def __init__(self, scan: Scan, previous: Mapping[str, AcceptedObject], now: str) -> None:
        self._scan = scan
        self._previous = previous
        self._now = now
        self.objects: dict[str, AcceptedObject] = {}
        self.errors: list[ResourceError] = []
        self.outdated: set[str] = set()
        self._faulty: set[str] = set()

    # --- one object --------------------------------------------------------------------------

    def take_valid(self) -> None:
        """Accept every object defined once; the file that had it wins over a second one."""
        found: dict[str, list[ParsedObject]] = defaultdict(list)
        for source in sorted(self._scan.files):
            for item in self._scan.files[source]:
                if isinstance(item, ResourceError):
                    self.errors.append(item)
                    self._faulty.add(source)
                else:
                    found[item.id].append(item)
        for key, items in found.items():
            self.objects[key] = self._accept(self._choose(key, items))
        for source, reason in sorted(self._scan.unreadable.items()):
            self.errors.append(ResourceError(source, "", "", reason))

    def _choose(self, key: str, items: list[ParsedObject]) -> ParsedObject:
        known = self._previous.get(key)
        chosen = next((item for item in items if known and item.source == known.source), items[0])
        for item in items:
            if item is chosen:
                continue
            place = (
                "twice in this file" if item.source == chosen.source else f"also in {chosen.source}"
            )
            self.errors.append(
                ResourceError(item.source, key, "", f"is defined {place}; remove one of the two")
            )
        return chosen

    def _accept(self, parsed: ParsedObject) -> AcceptedObject:
        known = self._previous.get(parsed.id)
        if known is not None and (known.data is parsed.data or known.data == parsed.data):
            # the very same value as before: computation recognises it
            if known.source == parsed.source:
                return known
            resource = known.resource
        else:
            resource = parsed.resource
        return AcceptedObject(
            id=parsed.id,
            resource=resource,
            source=parsed.source,
            created=resource.meta.creation_timestamp or (known.created if known else self._now),
            data=parsed.data,
            claims=_claims(resource),
        )

    def keep_last_good(self) -> None:
        """Objects of files that are faulty or cannot be read stay as they were."""
        for key, known in self._previous.items():
            if key in self.objects:
                continue
            if known.source in self._faulty or self._unreadable(known.source):
                self.objects[key] = known
                self.outdated.add(key)

    def _unreadable(self, source: str) -> bool:
        """A file below a directory that cannot be read is as good as unreadable itself."""
        return any(
            source == path or path == "." or source.startswith(f"{path}/")
            for path in self._scan.unreadable
        )

    # --- several objects ---------------------------------------------------------------------

    def settle_claims(self) -> None:
        """Give each address to one object; a loser falls back to its last good version.

        A version that falls back claims before any new one, which may make another new version
        lose in turn: hence again from the start, until nobody loses. Last good versions never
        clash, because they were in force together.
        """
        conflicts: dict[str, ResourceError] = {}
        while found := self._conflicts():
            for conflict in found:
                loser = conflict.obj
                conflicts[loser] = conflict
                last = self._previous.get(loser)
                if last is None or last is self.objects[loser]:
                    del self.objects[loser]
                else:
                    self.objects[loser] = last
                    self.outdated.add(loser)
        self.errors += [conflicts[key] for key in sorted(conflicts)]

    def _conflicts(self) -> list[ResourceError]:
        """Who loses: what was claimed before comes first, then the older object."""
        owners: dict[str, AcceptedObject] = {}
        found = []
        claimants = [item for item in self.objects.values() if item.claims]
        claimants.sort(key=lambda item: (not self._claimed_before(item), item.age))
        for item in claimants:
            taken = next((claim for claim in item.claims if claim in owners), "")
            if taken:
                found.append(_conflict(item, owners[taken], taken))
            else:
                owners.update(dict.fromkeys(item.claims, item))
        return found

    def _claimed_before(self, item: AcceptedObject) -> bool:
        known = self._previous.get(item.id)
        return known is item or (known is not None and set(item.claims) <= set(known.claims))


def _claims(resource: Resource) -> tuple[str, ...]:
    """What an object wants for itself alone, as error messages call it."""
    if isinstance(resource, WorkloadEntry):
        return tuple(f"address {resource.network}/{item}".replace(" /", " ")
                     for item in resource.addresses)  # fmt: skip
    if isinstance(resource, ServiceResource):
        return tuple(f"address {item}" for item in resource.cluster_ips)
    if isinstance(resource, NodeResource):
        return (
            *(f"node address {item}" for item in resource.internal_addresses),
            *(f"podCIDR {item}" for item in resource.pod_cidrs),
        )
    return ()


def _conflict(item: AcceptedObject, rival: AcceptedObject, claim: str) -> ResourceError:
    return ResourceError(
        item.source,
        item.id,
        _claim_field(item.resource),
        f"{claim} belongs to {rival.id} ({rival.source}); give this one another, or remove one",
    )


def _claim_field(resource: Resource) -> str:
    if isinstance(resource, WorkloadEntry):
        return "spec.address"
    return "spec.clusterIP" if isinstance(resource, ServiceResource) else "spec.podCIDRs"


def rebuild(objects: Iterable[tuple[ParsedObject, str]]) -> dict[str, AcceptedObject]:
    """Accepted objects from what was saved: each with its ``created``."""
    return {
        parsed.id: AcceptedObject(
            id=parsed.id,
            resource=parsed.resource,
            source=parsed.source,
            created=created,
            data=parsed.data,
            claims=_claims(parsed.resource),
        )
        for parsed, created in objects
    }
