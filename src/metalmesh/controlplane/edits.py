"""Changes of the store as kubectl would make them: planned here, judged as a whole; pure.

The store has one object per file, ``<Kind>/<namespace or _cluster>/<name>.yaml``, as the Ansible
module ``resource`` writes it. An object that somebody keeps in a file of another name is changed
there if it is alone in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metalmesh.controlplane.admission import Scan, admit
from metalmesh.errors import MetalmeshError, ResourceError
from metalmesh.model.resources import KINDS, ParsedObject, parse_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metalmesh.controlplane.snapshot import AcceptedObject, Admission

CLUSTER = "_cluster"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What happens to one object."""

    id: str
    #: file below the store
    path: str
    #: ``created``, ``configured``, ``unchanged`` or ``deleted``
    verb: str
    #: what the file is to hold; None when it goes
    data: Mapping[str, Any] | None


def store_path(object_id: str) -> str:
    """Where an object belongs, by its id ``Kind namespace/name``."""
    kind, _, key = object_id.partition(" ")
    namespace, _, name = key.rpartition("/")
    return f"{kind}/{namespace or CLUSTER}/{name}.yaml"


def resource_name(object_id: str) -> str:
    """As kubectl calls it: ``authorizationpolicy.security.istio.io/name``."""
    kind, _, key = object_id.partition(" ")
    group = KINDS[kind].group
    return f"{kind.lower()}{f'.{group}' if group else ''}/{key.rpartition('/')[2]}"


def plan_apply(scan: Scan, wanted: Iterable[ParsedObject]) -> list[Change]:
    """Have every object as it is wanted; what is the same already is left alone."""
    places = _places(scan)
    changes: dict[str, Change] = {}
    for item in wanted:
        if item.id in changes:
            raise MetalmeshError(f"{item.source}: {item.id} is given twice; remove one of them")
        known = places.get(item.id)
        if known is not None and known.data == item.data:
            verb, path = "unchanged", known.source
        elif known is not None:
            verb, path = "configured", _own_file(scan, known)
        else:
            verb, path = "created", store_path(item.id)
            # a faulty older version is replaced
            if any(isinstance(found, ParsedObject) for found in scan.files.get(path, ())):
                raise MetalmeshError(f"{path} holds something else than {item.id}; mend it first")
        changes[item.id] = Change(id=item.id, path=path, verb=verb, data=item.data)
    return list(changes.values())


def plan_delete(scan: Scan, ids: Iterable[str]) -> list[Change]:
    """Have none of the objects; one that is not there is an error."""
    places = _places(scan)
    faulty = {
        found.obj: source
        for source, items in scan.files.items()
        for found in items
        if isinstance(found, ResourceError) and source == store_path(found.obj or " ")
    }
    changes = []
    for object_id in dict.fromkeys(ids):
        known = places.get(object_id)
        path = _own_file(scan, known) if known is not None else faulty.get(object_id, "")
        if not path:
            raise MetalmeshError(f"{object_id} is not in the store")
        changes.append(Change(id=object_id, path=path, verb="deleted", data=None))
    return changes


def judge(
    scan: Scan, changes: Iterable[Change], previous: Mapping[str, AcceptedObject], now: str
) -> Admission:
    """What would be in force after the changes; errors of changed files are a refusal."""
    files = dict(scan.files)
    for change in changes:
        files.pop(change.path, None)
        if change.data is not None:
            files[change.path] = tuple(parse_object(change.data, change.path))
    return admit(Scan(files, scan.unreadable), previous, now)


def _places(scan: Scan) -> dict[str, ParsedObject]:
    return {
        item.id: item
        for source in sorted(scan.files, reverse=True)
        for item in scan.files[source]
        if isinstance(item, ParsedObject)
    }


def _own_file(scan: Scan, item: ParsedObject) -> str:
    if len(scan.files[item.source]) > 1:
        raise MetalmeshError(
            f"{item.id} is in {item.source}, together with other objects; edit that file, or give "
            "the object one of its own"
        )
    return item.source
