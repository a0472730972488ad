# SPDX-License-Identifier: Apache-2.0
# PRIVATE to the collection metalmesh.ambient.

"""Pure plans: what is there and what is wanted in, what must change out. No I/O."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass
from typing import Any

#: stands in a diff for content that must not be shown
SECRET = "(content not shown)\n"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a path."""

    #: absolute path that changes
    path: str
    #: write, attributes, directory, link or remove
    action: str
    #: text before and after, as a diff shows it
    before: str = ""
    after: str = ""

    def to_diff(self) -> dict[str, str]:
        """Return the form in which Ansible prints differences."""
        return {
            "before_header": f"{self.path} (before)",
            "after_header": f"{self.path} ({self.action})",
            "before": self.before,
            "after": self.after,
        }


def _attributes(mode: int, uid: int | None, gid: int | None, owner: str, group: str) -> str:
    numbers = f"{'?' if uid is None else uid}:{'?' if gid is None else gid}"
    return f"mode {mode:04o} owner {owner or numbers} group {group or numbers}\n"


def _attributes_differ(live: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return (live["mode"], live["uid"], live["gid"]) != (
        wanted["mode"],
        wanted["uid"],
        wanted["gid"],
    )


def plan_file(path: str, live: dict[str, Any], wanted: dict[str, Any]) -> Change | None:
    """Plan one regular file.

    ``wanted`` has content, mode, uid and gid (None: the user does not exist yet), owner and group
    (names, for the diff) and secret (its content stays out of the diff).
    """
    content = str(wanted["content"])
    if live["kind"] != "file" or live["content"] != content:
        before = str(live.get("content", ""))
        if wanted["secret"]:
            return Change(path=path, action="write", before="", after=SECRET)
        return Change(path=path, action="write", before=before, after=content)
    if _attributes_differ(live, wanted):
        return Change(
            path=path,
            action="attributes",
            before=_attributes(live["mode"], live["uid"], live["gid"], "", ""),
            after=_attributes(
                wanted["mode"], wanted["uid"], wanted["gid"], wanted["owner"], wanted["group"]
            ),
        )
    return None


def plan_directory(path: str, live: dict[str, Any], wanted: dict[str, Any]) -> Change | None:
    """Plan one directory with its mode, owner and group."""
    after = _attributes(
        wanted["mode"], wanted["uid"], wanted["gid"], wanted["owner"], wanted["group"]
    )
    if live["kind"] != "directory":
        return Change(path=path, action="directory", before=f"{live['kind']}\n", after=after)
    if _attributes_differ(live, wanted):
        before = _attributes(live["mode"], live["uid"], live["gid"], "", "")
        return Change(path=path, action="directory", before=before, after=after)
    return None


def plan_link(path: str, live: dict[str, Any], target: str) -> Change | None:
    """Plan one symbolic link."""
    if live["kind"] == "link" and live["target"] == target:
        return None
    before = f"-> {live['target']}\n" if live["kind"] == "link" else f"{live['kind']}\n"
    return Change(path=path, action="link", before=before, after=f"-> {target}\n")


def plan_removal(path: str, live: dict[str, Any]) -> Change | None:
    """Plan that nothing is left at ``path``."""
    if live["kind"] == "absent":
        return None
    return Change(path=path, action="remove", before=f"{live['kind']}\n", after="absent\n")


def surplus(directory: str, names: list[str], patterns: list[str], wanted: set[str]) -> list[str]:
    """Return the paths of ``names`` in ``directory`` that match a pattern and are not wanted."""
    paths = (
        os.path.join(directory, name)
        for name in sorted(names)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )
    return [path for path in paths if path not in wanted]


__all__ = [
    "SECRET",
    "Change",
    "plan_directory",
    "plan_file",
    "plan_link",
    "plan_removal",
    "surplus",
]
