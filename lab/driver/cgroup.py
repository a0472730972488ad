"""A control group per machine, on hosts whose PID 1 is not systemd.

Without one of its own, every machine's systemd would manage the same tree, and stopping a
unit in one machine could kill processes of another. With systemd as PID 1 the machine is a
transient unit and gets a delegated group from there.
"""

from __future__ import annotations

import os
from pathlib import Path

from lab.driver import names

ROOT = Path("/sys/fs/cgroup")
_V1_HIERARCHIES = ("systemd", "unified", "memory", "cpuacct", "pids", "cpu")


def hierarchies() -> list[Path]:
    """Roots of the hierarchies a machine gets a group in: one for v2, several for hybrid v1."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [ROOT / name for name in _V1_HIERARCHIES if (ROOT / name / "cgroup.procs").exists()]


def create(name: str) -> list[Path]:
    """Make the group in every hierarchy; return the files a process joins by."""
    joins = []
    for hierarchy in hierarchies():
        (hierarchy / name).mkdir(exist_ok=True)
        joins.append(hierarchy / name / "cgroup.procs")
    return joins


def processes(name: str) -> set[int]:
    """Every process in the group or below it."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name):
            try:
                text = (Path(directory) / "cgroup.procs").read_text()
            except FileNotFoundError:
                continue
            found.update(int(word) for word in text.split())
    return found


def remove(name: str) -> None:
    """Remove the group everywhere, innermost first. Its processes must have ended."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name, topdown=False):
            Path(directory).rmdir()


def existing() -> set[str]:
    """Names of all groups that belong to labs."""
    return {
        path.name
        for hierarchy in hierarchies()
        for path in hierarchy.glob(f"{names.PREFIX}*")
        if path.is_dir()
    }
