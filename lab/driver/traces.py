"""Finds and removes what labs leave on the host, by name and without any recorded state."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from lab.driver import cgroup, host, machine, names, network
from lab.driver.errors import LeftoverError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SSH_PORT = 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traces:
    """Objects of labs on this host."""

    machines: tuple[str, ...]
    """Names of machines that have processes or a control group."""
    mounts: tuple[Path, ...]
    namespaces: tuple[str, ...]
    links: tuple[str, ...]
    directories: tuple[Path, ...]

    def lines(self) -> list[str]:
        """One line per kind that is there."""
        found = []
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if values:
                found.append(f"{field.name}: {', '.join(map(str, values))}")
        return found


def find(lab: str | None) -> Traces:
    """Everything of one lab, or of all labs."""

    def ours(name: str) -> bool:
        return names.owner(name) is not None if lab is None else names.owner(name) == lab

    return Traces(
        machines=tuple(sorted(filter(ours, _machine_names()))),
        mounts=tuple(host.mounts_below(_below(names.STATE_ROOT, lab))),
        namespaces=tuple(filter(ours, network.namespaces())),
        links=tuple(
            link for link, who in sorted(network.host_links().items()) if lab in (None, who)
        ),
        directories=tuple(_directories(lab)),
    )


def labs() -> list[str]:
    """Names of all labs of which anything is on this host."""
    found = find(None)
    owned = {names.owner(name) for name in (*found.machines, *found.namespaces)}
    owned.update(network.host_links().values())
    owned.update(path.name for path in found.directories)
    return sorted(filter(None, owned))


def _below(root: Path, lab: str | None) -> Path:
    return root / lab if lab else root


def _machine_names() -> set[str]:
    """Machines that run, that left a control group, or that nspawn remembers."""
    found = cgroup.existing()
    for pid in host.process_ids():
        words = host.command_line(pid)
        if words and Path(words[0]).name == "systemd-nspawn":
            found.update(w.partition("=")[2] for w in words if w.startswith("--machine="))
    for directory in filter(Path.is_dir, machine.NSPAWN_DIRECTORIES):
        found.update(path.name for path in directory.iterdir())
    return found


def _directories(lab: str | None) -> Iterator[Path]:
    for root in (names.STATE_ROOT, names.RUN_ROOT):
        if root.is_dir():
            for path in sorted(root.iterdir()):
                if path.is_dir() and lab in (None, path.name):
                    yield path


def remove(lab: str) -> None:
    """Remove everything of a lab, in the order that lets go of it.

    Raises LeftoverError naming what is still there afterwards.
    """
    found = find(lab)
    for link in found.links:
        close_ssh(int(link.removeprefix(names.HOST_LINK_PREFIX)))
    for name in found.machines:
        machine.kill(name)
    host.unmount_below(names.STATE_ROOT / lab)
    network.remove_host_links(list(found.links))
    for namespace in found.namespaces:
        network.remove_namespace(namespace)
    for path in found.directories:
        shutil.rmtree(path)
    _remove_shared()
    left = find(lab).lines()
    if left:
        raise LeftoverError("could not remove everything: " + "; ".join(left))


def close_ssh(number: int) -> None:
    """End the ssh clients of this host that are connected to the lab's nodes.

    Ansible and testinfra keep masters alive in the background; each would wait minutes for a
    node that no longer exists, and would answer for its successor.
    """
    sockets = _connections_to(f"10.77.{number}.")
    if not sockets:
        return
    for pid in host.process_ids():
        words = host.command_line(pid)
        if words and words[0].startswith("ssh") and sockets & _open_sockets(pid):
            host.send_signal(pid, signal.SIGTERM)
            if not host.wait_gone(pid, timeout_seconds=2.0):
                host.kill_and_wait([pid])


def _connections_to(prefix: str) -> set[str]:
    """Inodes of the TCP sockets whose peer is the ssh port of an address with this prefix."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        address, port = words[2].split(":")
        octets = [str(byte) for byte in bytes.fromhex(address)[::-1]]
        if int(port, 16) == _SSH_PORT and ".".join(octets).startswith(prefix):
            found.add(f"socket:[{words[9]}]")
    return found


def _open_sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            found.add(str(entry.readlink()))
    return found


def _remove_shared() -> None:
    """When no lab is left, remove the shared directories that exist only because of labs."""
    if find(None).lines():
        return
    nspawn = machine.NSPAWN_DIRECTORIES[0].parent
    for path in (names.STATE_ROOT, *machine.NSPAWN_DIRECTORIES, nspawn, nspawn.parent):
        with contextlib.suppress(OSError):  # not there, or in use by others
            path.rmdir()
    if network.MADE_NETNS_DIR.exists():
        network.MADE_NETNS_DIR.unlink()
        _remove_netns_dir()


def _remove_netns_dir() -> None:
    """Remove /run/netns, unless others have namespaces there by now."""
    directory = network.NETNS_DIR
    if directory.is_dir() and not any(directory.iterdir()):
        host.unmount_below(directory)
        with contextlib.suppress(OSError):
            directory.rmdir()
