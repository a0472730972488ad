# SPDX-License-Identifier: Apache-2.0
# PRIVATE to the collection metalmesh.ambient.

"""Mesh resources in the store of the control plane: names, paths, plans. Pure.

The store holds one object per file, ``<Kind>/<namespace or _cluster>/<name>.yaml``. A file that
Ansible wrote says so in its first line, with the owner that a play gave it; only such files are
ever removed because nobody declares them any more.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError

CLUSTER = "_cluster"
#: kinds without a namespace
CLUSTER_KINDS = frozenset({"Namespace", "Node"})
HEADER = "# Managed by Ansible, owner: "

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_KIND = re.compile(r"[A-Z][A-Za-z]{1,62}\Z")


@dataclass(frozen=True, kw_only=True)
class ObjectKey:
    """What names one object."""

    kind: str
    #: empty for objects of the cluster
    namespace: str
    name: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.namespace}/{self.name}"
            if self.namespace
            else f"{self.kind} {self.name}"
        )

    @property
    def path(self) -> str:
        """Path below the store."""
        return os.path.join(self.kind, self.namespace or CLUSTER, f"{self.name}.yaml")


@dataclass(frozen=True, kw_only=True)
class StoreChange:
    """One file of the store that changes."""

    key: ObjectKey
    #: text now; empty when the file is not there
    before: str
    #: text wanted; empty when the file goes
    after: str

    @property
    def verb(self) -> str:
        """Return created, updated or removed."""
        if not self.before:
            return "created"
        return "updated" if self.after else "removed"

    def to_diff(self) -> dict[str, str]:
        """Return the form in which Ansible prints differences."""
        return {
            "before_header": f"{self.key} (before)",
            "after_header": f"{self.key} ({self.verb})",
            "before": self.before,
            "after": self.after,
        }


def parse_key(definition: Any, where: str) -> ObjectKey:
    """Return the key of one object; ``where`` says which one of the arguments it is."""
    if not isinstance(definition, dict):
        raise ModuleError(f"{where}: is {type(definition).__name__}, must be an object")
    metadata = definition.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind = str(definition.get("kind", ""))
    name = str(metadata.get("name", ""))
    namespace = str(metadata.get("namespace") or ("" if kind in CLUSTER_KINDS else "default"))
    if not _KIND.match(kind):
        raise ModuleError(f"{where}: kind: {kind!r} is no kind", "Give the object as in its YAML")
    for field, value in (("metadata.name", name), ("metadata.namespace", namespace)):
        if (value or field == "metadata.name") and not _NAME.match(value):
            raise ModuleError(
                f"{where}: {kind} {field}: {value!r} is no name",
                "Use lower-case letters, digits, '-' and '.'",
            )
    if kind in CLUSTER_KINDS and namespace:
        raise ModuleError(f"{where}: {kind} {name}: metadata.namespace: a {kind} has none")
    return ObjectKey(kind=kind, namespace=namespace, name=name)


def owner_of(text: str) -> str | None:
    """Return the owner in the header of a file; None when Ansible did not write it."""
    first = text.split("\n", 1)[0]
    return first[len(HEADER) :] if first.startswith(HEADER) else None


def render(definition: dict[str, Any], owner: str, dump: Callable[[Any], str]) -> str:
    """Return the text of the file of one object."""
    return f"{HEADER}{owner}\n{dump(definition)}"


def keys_of(definitions: list[Any]) -> list[ObjectKey]:
    """Return the keys of the objects; none may be given twice."""
    keys = [parse_key(item, f"definition[{index}]") for index, item in enumerate(definitions)]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise ModuleError(f"definition[{index}]: {key} is given twice", "Remove one of them")
    return keys


def paths_of(definitions: list[Any]) -> set[str]:
    """Return the paths below the store of the objects."""
    return {key.path for key in keys_of(definitions)}


def existing(live: dict[str, str], definitions: list[Any], kinds: list[str]) -> list[Any]:
    """Return the objects of these kinds that are in the store already."""
    keys = keys_of(definitions)
    pairs = zip(keys, definitions, strict=True)
    return [item for key, item in pairs if key.kind in kinds and key.path in live]


def plan_present(
    live: dict[str, str],
    definitions: list[Any],
    owner: str,
    dump: Callable[[Any], str],
    load: Callable[[str], Any],
) -> list[StoreChange]:
    """Plan that the objects are there; ``live`` is path below the store -> text.

    A file that says the same with other words or comments is left as it is, whoever wrote it.
    """
    changes = []
    for key, definition in zip(keys_of(definitions), definitions, strict=True):
        before = live.get(key.path, "")
        if not before or load(before) != definition:
            after = render(definition, owner, dump)
            changes.append(StoreChange(key=key, before=before, after=after))
    return changes


def plan_absent(live: dict[str, str], definitions: list[Any]) -> list[StoreChange]:
    """Plan that the objects are not there; only their kind and name count."""
    paths = [key.path for key in keys_of(definitions)]
    return [removal(path, live[path]) for path in paths if path in live]


def plan_pruned(
    live: dict[str, str], owner: str, kinds: list[str], wanted: set[str]
) -> list[StoreChange]:
    """Plan that of ``owner`` nothing (of these kinds) is left but the wanted paths."""
    surplus = [
        path
        for path, text in sorted(live.items())
        if path not in wanted
        and owner_of(text) == owner
        and (not kinds or path.split(os.sep)[0] in kinds)
    ]
    return [removal(path, live[path]) for path in surplus]


def removal(path: str, text: str) -> StoreChange:
    """Return the change that removes a file of the store."""
    kind, folder, name = path.split(os.sep)
    namespace = "" if folder == CLUSTER else folder
    key = ObjectKey(kind=kind, namespace=namespace, name=name[: -len(".yaml")])
    return StoreChange(key=key, before=text, after="")


def sort_findings(report: dict[str, Any], changed: set[str]) -> tuple[list[str], list[str]]:
    """Return errors of changed files, and everything else the validation found, as lines."""
    errors, warnings = [], []
    for found in report["errors"]:
        words = (found["source"], found["object"], found["field"], found["message"])
        line = ": ".join(word for word in words if word)
        if found["source"] in changed:
            errors.append(line)
        else:
            warnings.append(f"{line} (this was so before)")
    for found in report["warnings"]:
        if found["source"] in changed:
            warnings.append(f"{found['object']}: {found['reason']}: {found['message']}")
    return errors, warnings


def matches(definition: Any, kind: str, namespace: str, name: str) -> bool:
    """Return whether an object is asked for; empty means any."""
    if not isinstance(definition, dict):
        return False
    metadata = definition.get("metadata") or {}
    return (
        kind in ("", definition.get("kind"))
        and namespace in ("", metadata.get("namespace", ""))
        and name in ("", metadata.get("name"))
    )


__all__ = [
    "ObjectKey",
    "StoreChange",
    "existing",
    "keys_of",
    "matches",
    "owner_of",
    "parse_key",
    "paths_of",
    "plan_absent",
    "plan_present",
    "plan_pruned",
    "removal",
    "render",
    "sort_findings",
]
