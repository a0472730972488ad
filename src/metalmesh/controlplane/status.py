"""What the control plane thinks of every object: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.controlplane.snapshot import Admission, Condition
    from metalmesh.errors import ResourceError


def object_status(
    admission: Admission, conditions: Mapping[str, tuple[Condition, ...]]
) -> dict[str, Any]:
    """Objects in force with their conditions, refused ones with their errors, faulty files."""
    errors: dict[str, list[ResourceError]] = {}
    files = []
    for error in admission.errors:
        if error.obj:
            errors.setdefault(error.obj, []).append(error)
        else:
            files.append({"source": error.source, "message": error.message})
    objects = [
        {
            "object": key,
            "source": item.source,
            "created": item.created,
            # in force, though possibly in an older version than the file holds
            "inForce": True,
            "outdated": key in admission.outdated,
            "conditions": [entry.to_dict() for entry in conditions.get(key, ())],
            "errors": [_error(entry) for entry in errors.pop(key, ())],
        }
        for key, item in sorted(admission.objects.items())
    ]
    objects += [
        {
            "object": key,
            "source": found[0].source,
            "inForce": False,
            "outdated": False,
            "conditions": [],
            "errors": [_error(entry) for entry in found],
        }
        for key, found in sorted(errors.items())
    ]
    return {"objects": objects, "files": files}


def _error(error: ResourceError) -> dict[str, str]:
    return {"source": error.source, "field": error.field, "message": error.message}
