"""The few things asked of the host's kernel: mounts, processes, namespaces, progress lines."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lab.driver.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MNT_DETACH = 2
CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class Progress:
    """Says on stderr what is going on, with the seconds since the start."""

    def __init__(self, lab: str, *, quiet: bool = False) -> None:
        self._lab = lab
        self._quiet = quiet
        self._started_at = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line."""
        if not self._quiet:
            elapsed = time.monotonic() - self._started_at
            print(f"lab {self._lab} {elapsed:5.1f}s  {text}", file=sys.stderr, flush=True)


def has_systemd() -> bool:
    """Whether the host's PID 1 is systemd (the check of sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def run(command: Sequence[str], *, error: type[LabError], remedy: str, text_in: str = "") -> str:
    """Run a command to its end and return what it printed; raise with its last words."""
    try:
        done = subprocess.run(command, input=text_in, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise error(f"command {command[0]!r} is not installed; {remedy}") from missing
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise error(f"{' '.join(command)}: exit {done.returncode}: {' / '.join(last)}; {remedy}")
    return done.stdout


def mount_overlay(*, lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Mount an overlay; its data all goes through one string, so paths must hold no comma."""
    data = f"lowerdir={lower},upperdir={upper},workdir={work}"
    if _LIBC.mount(b"overlay", os.fsencode(target), b"overlay", 0, data.encode()):
        code = ctypes.get_errno()
        raise LabError(
            f"cannot mount the overlay {target} ({data}): {os.strerror(code)}; {upper} must lie on"
            " a file system that can be the upper layer: ext4, xfs, btrfs or tmpfs"
        )


def unmount(target: Path) -> None:
    """Detach a mount at once; what still has it open keeps it until it closes."""
    if _LIBC.umount2(os.fsencode(target), MNT_DETACH):
        code = ctypes.get_errno()
        raise LabError(f"cannot unmount {target}: {os.strerror(code)}")


def mounts_below(root: Path) -> list[Path]:
    """Mount points below a directory, innermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4].encode().decode("unicode_escape")
        if target == str(root) or target.startswith(f"{root}/"):
            found.append(Path(target))
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def unmount_below(root: Path) -> None:
    """Detach every mount at or below a path.

    On a host whose mounts are shared (systemd makes them so), one mount may be listed twice
    and both go at once; stacked ones go one by one. So: each path once, then look again.
    """
    while found := mounts_below(root):
        for target in dict.fromkeys(found):
            unmount(target)


def in_netns(name: str, action: Callable[[], T]) -> T:
    """Run an action in a network namespace, in a thread of its own (setns is per thread)."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            handle = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _LIBC.setns(handle, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter network namespace {name}")
            finally:
                os.close(handle)
            outcome.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def process_ids() -> Iterator[int]:
    """Every process there is."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def command_line(pid: int) -> list[str]:
    """Arguments of a process; empty when it is gone or a zombie."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return raw.decode(errors="replace").split("\0")[:-1]


def children(pid: int) -> list[int]:
    """Children of a process's main thread."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def send_signal(pid: int, number: int) -> None:
    """Signal a process; that it is gone already is fine."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_gone(pid: int, *, timeout_seconds: float) -> bool:
    """Wait until a process has ended. A zombie has: the host's PID 1 may reap it late."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        return bool(poller.poll(timeout_seconds * 1000))
    finally:
        os.close(handle)


def kill_and_wait(pids: Sequence[int], *, timeout_seconds: float = 10.0) -> list[int]:
    """Kill processes; return those that are still there."""
    for pid in pids:
        send_signal(pid, signal.SIGKILL)
    return [pid for pid in pids if not wait_gone(pid, timeout_seconds=timeout_seconds)]
