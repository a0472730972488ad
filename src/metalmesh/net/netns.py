"""Network namespaces by file descriptor: open, enter, work inside.

``setns(2)`` changes the calling *thread* only. A socket belongs for life to the namespace its
thread was in when it was made, so a single-threaded process can serve many namespaces by
entering the right one around ``socket()`` (:class:`CurrentNetns`); a process with an event loop
and other threads uses :func:`in_netns` for a few lines or :func:`run_in_netns`, which never
touches the calling thread at all.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from metalmesh.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000
#: where ``ip netns`` and systemd's NetworkNamespacePath= look for named namespaces
NETNS_DIR: Final = Path("/run/netns")


def open_netns(path: str | Path) -> int:
    """Open a namespace file (``/run/netns/NAME`` or ``/proc/PID/ns/net``); caller closes it."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(
            f"network namespace {path}: cannot open it ({error.strerror}); is its "
            "metalmesh-netns@ unit running?"
        ) from error


def open_own_netns() -> int:
    """Open the namespace of the calling thread."""
    return open_netns("/proc/thread-self/ns/net")


def setns(fd: int) -> None:
    """Move the calling thread into the network namespace behind ``fd``."""
    try:
        if hasattr(os, "setns"):
            os.setns(fd, CLONE_NEWNET)
        else:
            _libc_setns(fd)
    except OSError as error:
        raise NetworkError(
            f"network namespace (fd {fd}): setns refused ({error.strerror}); "
            "it needs CAP_SYS_ADMIN and an open namespace"
        ) from error


def _libc_setns(fd: int) -> None:
    """``setns`` for Python 3.11, whose ``os`` does not have it yet."""
    import ctypes  # costs memory, and newer Pythons do not need it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextmanager
def in_netns(fd: int) -> Iterator[None]:
    """Run the block in the namespace behind ``fd``, on the calling thread, then come back.

    The block must not await or hand control to other code that makes sockets.
    """
    home = open_own_netns()
    try:
        setns(fd)
        try:
            yield
        finally:
            setns(home)
    finally:
        os.close(home)


def run_in_netns(fd: int, function: Callable[[], T]) -> T:
    """Call ``function`` in a short-lived thread inside the namespace; return or raise its end.

    The calling thread never leaves its own namespace, whatever the function does.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            setns(fd)
            results.append(function())
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=work, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class CurrentNetns:
    """Remembers which namespace this single-threaded process is in, to save system calls.

    ``enter`` is a no-op when the namespace is already the current one, which it nearly always is.
    """

    def __init__(self) -> None:
        self._current = -1

    def enter(self, fd: int) -> None:
        """Make the namespace behind ``fd`` the current one."""
        if fd != self._current:
            setns(fd)
            self._current = fd

    def forget(self, fd: int) -> None:
        """``fd`` is about to be closed; its number may come back for another namespace."""
        if fd == self._current:
            self._current = -1
