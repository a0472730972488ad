# SPDX-License-Identifier: Apache-2.0
# PRIVATE to the collection metalmesh.ambient.

"""The one place where the collection's modules read and write files of a node.

Writing is atomic: a temporary file beside the target, mode and owner first, then a rename.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import tempfile
from typing import Any, Callable


class ModuleError(Exception):
    """A module cannot do what it was asked; ``hint`` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}. {hint}" if hint else message)


def uid_of(owner: str) -> int | None:
    """Return the numeric id of user ``owner``, or None when there is no such user yet."""
    if owner.isdigit():
        return int(owner)
    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        return None


def gid_of(group: str) -> int | None:
    """Return the numeric id of ``group``, or None when there is no such group yet."""
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def read_state(path: str) -> dict[str, Any]:
    """Describe what is at ``path``: kind (absent, file, directory, link, other) and attributes."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return {"kind": "absent"}
    if stat.S_ISLNK(found.st_mode):
        return {"kind": "link", "target": os.readlink(path)}
    state: dict[str, Any] = {
        "kind": "other",
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }
    if stat.S_ISDIR(found.st_mode):
        state["kind"] = "directory"
    elif stat.S_ISREG(found.st_mode):
        state["kind"] = "file"
        state["content"] = read_text(path)
    return state


def read_text(path: str) -> str:
    """Return the text of a file; bytes that are no UTF-8 are kept as surrogates."""
    with open(path, encoding="utf-8", errors="surrogateescape") as handle:
        return handle.read()


def ensure_owner(path: str, owner: str, group: str) -> None:
    """Give ``path`` to ``owner`` and ``group``, which must exist."""
    uid, gid = uid_of(owner), gid_of(group)
    for kind, name, number in (("user", owner, uid), ("group", group, gid)):
        if number is None:
            raise ModuleError(
                f"{path}: there is no {kind} {name!r} on this machine",
                "Run the role node_base first: it makes the mesh's users and groups",
            )
    os.chown(path, uid if uid is not None else -1, gid if gid is not None else -1)


def write_text(
    path: str,
    text: str,
    *,
    owner: str = "root",
    group: str = "root",
    mode: int = 0o644,
    check: Callable[[str], None] | None = None,
) -> None:
    """Replace the file ``path`` atomically; ``check`` sees the new content first and may raise."""
    folder = os.path.dirname(path) or "."
    descriptor, temporary = tempfile.mkstemp(prefix=".metalmesh-", dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        if check is not None:
            check(temporary)
        ensure_owner(temporary, owner, group)
        os.chmod(temporary, mode)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def remove(path: str) -> None:
    """Remove a file, a link or a whole directory; what is not there is not an error."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def remove_if_empty(folder: str) -> None:
    """Remove a directory in which nothing is left."""
    if not os.listdir(folder):
        os.rmdir(folder)


__all__ = [
    "ModuleError",
    "ensure_owner",
    "gid_of",
    "read_state",
    "read_text",
    "remove",
    "remove_if_empty",
    "uid_of",
    "write_text",
]
