"""What there is on this host, to compare before and after a lab."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab.driver import Lab, host, state
from lab.driver.errors import LabError

_TREES = {Path("/run"): 4, Path("/var/lib"): 2, Path("/etc"): 1}
"""Directories whose entries are compared, and how deep. Anybody may write to /tmp at any time: a
test that cares has temporary files of its own."""
_FOREIGN = re.compile(r"\bmm-|\bmmt|metalmesh|/pytest-")
"""Marks objects of other labs and tests, which may come and go meanwhile."""
_SHARED = re.compile(r"^(/run/netns|/run/metalmesh-lab|/var/lib/metalmesh-lab|/run/systemd/nspawn)")
"""Directories that belong to all labs together; the last one to go removes them."""

View = dict[str, set[str]]


def snapshot() -> View:
    """Namespaces, links, routes, mounts, processes, control groups, nft tables and files."""
    return {
        "namespaces": _entries([Path("/run/netns")]),
        "links": set(_links()),
        "routes": _lines("ip", "route", "show", "table", "all")
        | _lines("ip", "-6", "route", "show", "table", "all"),
        "mounts": {line.split()[4] for line in Path("/proc/self/mountinfo").open()},
        "processes": set(_processes()),
        "control groups": _entries([*Path("/sys/fs/cgroup").glob("*/"), Path("/sys/fs/cgroup")]),
        "nft tables": _lines("nft", "list", "tables"),
        "files": set(_files()),
    }


def added(before: View, lab: str) -> View:
    """What there is now and was not then, by kind; empty when the lab left nothing."""
    now = snapshot()
    others = [name for name in state.known_labs() if name != lab]
    addresses = _addresses(others)
    found = {}
    for kind, values in now.items():
        new = {
            value
            for value in values - before[kind]
            if not _is_foreign(value, lab, others) and not any(a in value for a in addresses)
        }
        if new:
            found[kind] = new
    return found


def _addresses(labs: Iterable[str]) -> list[str]:
    """How the ssh clients of other labs are told apart: nothing but the address names a lab."""
    found = []
    for name in labs:
        with contextlib.suppress(LabError):  # it may go at any moment
            found += [f"/{node.address_v4}-" for node in Lab.open(name).plan.nodes]
    return found


def _is_foreign(value: str, lab: str, others: list[str]) -> bool:
    """Whether an object certainly is somebody else's; one with the lab's name never is."""
    if lab in value:
        return False
    if _SHARED.match(value):
        return bool(others)
    return bool(_FOREIGN.search(value))


def _entries(directories: Iterable[Path]) -> set[str]:
    return {str(path) for parent in directories if parent.is_dir() for path in parent.iterdir()}


def _links() -> Iterable[str]:
    """Names of the host's links, with the alias that tells whose they are."""
    for link in Path("/sys/class/net").iterdir():
        try:
            yield f"{link.name} {(link / 'ifalias').read_text().strip()}"
        except (FileNotFoundError, NotADirectoryError):
            continue


def _lines(*command: str) -> set[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.strip() for line in done.stdout.splitlines()}


def _processes() -> Iterable[str]:
    """ssh clients and everything in another process namespace than ours."""
    own = Path("/proc/self/ns/pid").readlink()
    for pid in host.process_ids():
        words = host.command_line(pid)
        try:
            foreign = Path(f"/proc/{pid}/ns/pid").readlink() != own
            groups = Path(f"/proc/{pid}/cgroup").read_text().replace("\n", " ")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if words and (foreign or "nspawn" in words[0] or words[0].startswith("ssh")):
            yield f"{pid} {' '.join(words)} in {groups}"


def _files() -> Iterable[str]:
    for tree, depth in _TREES.items():
        for directory, names, files in os.walk(tree):
            for name in (*names, *files):
                yield f"{directory}/{name}"
            if len(Path(directory).parts) - len(tree.parts) >= depth - 1:
                names.clear()
