"""Learn at once when the store changes: inotify(7) by ctypes, with polling as its fallback.

inotify costs nothing while nothing changes and reports within a millisecond, where a poll of ten
thousand files five times a second would cost a tenth of a core. An event only says "look again":
what changed is found by comparing files, so that lost or coalesced events do no harm.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from typing import TYPE_CHECKING, Final

from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_CLOSE_WRITE: Final = 0x8
_MOVED: Final = 0xC0  # from or to
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_DELETE_SELF: Final = 0x400
_MOVE_SELF: Final = 0x800
_ATTRIB: Final = 0x4
_ONLYDIR: Final = 0x1000000
_MASK: Final = (
    _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ATTRIB | _ONLYDIR
)
_READ_BYTES: Final = 65536
#: a burst of writes (a role that installs a hundred objects) is taken together
SETTLE_SECONDS: Final = 0.02
#: look even without an event: what inotify cannot see (network file systems) is found then
RESCAN_SECONDS: Final = 30.0
#: how often to look when inotify is not to be had
POLL_SECONDS: Final = 0.3

log = Log("metalmesh.controlplane.watcher")


class StoreWatcher:
    """Waits for changes below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._changed = asyncio.Event()
        self._watched: dict[str, int] = {}
        self._fd = self._open()

    def _open(self) -> int:
        descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            reason = os.strerror(ctypes.get_errno())
            log.warning("no inotify; polling the store instead", {"error": reason})
            return -1
        asyncio.get_running_loop().add_reader(descriptor, self._read)
        return descriptor

    def watch(self, directories: Iterable[str]) -> bool:
        """Watch these directories (relative to the store); return whether any is new.

        What appears in a new directory before it is watched raises no event: the caller scans
        again when this returns True.
        """
        found: dict[str, int] = {}
        for name in directories if self._fd >= 0 else ():
            path = os.fsencode(self._directory / name)
            # the number of a watched directory stays; one made anew in its place gets another
            number = self._libc.inotify_add_watch(self._fd, path, _MASK)
            if number >= 0:
                found[name] = number
        numbers = set(self._watched.values())
        for gone in numbers - set(found.values()):
            self._libc.inotify_rm_watch(self._fd, gone)
        self._watched = found
        return not set(found.values()) <= numbers

    async def wait(self) -> None:
        """Return when something may have changed."""
        complete = self._fd >= 0 and "" in self._watched
        timeout = RESCAN_SECONDS if complete else POLL_SECONDS
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_SECONDS)
        self._changed.clear()

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        try:
            while os.read(self._fd, _READ_BYTES):
                pass
        except BlockingIOError:
            self._changed.set()
