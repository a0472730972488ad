"""Log lines of a data worker: Istio's plain or JSON form, one write per turn of the loop.

A log that does not take lines (a stuck journal) must not stop traffic: writing never blocks,
and what finds no room is counted and dropped.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from metalmesh.ztunnel.worker.loop import Loop

LEVELS: Final = {"trace": 0, "debug": 1, "info": 2, "warn": 3, "error": 4, "off": 9}
_MAX_PENDING_BYTES: Final = 1 << 20
#: pause before a full journal is tried again
_RETRY_SECONDS: Final = 0.2

#: a field: name, value, and whether plain form quotes it (addresses and numbers are bare)
Field = tuple[str, str, bool]


class Fragment:
    """Fields that many lines share, in plain form already."""

    __slots__ = ("fields", "text")

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = fields
        self.text = " ".join(
            f"{name}={_quote(value) if quoted else value}" for name, value, quoted in fields
        )


class LogWriter:
    """Formats lines and writes those of a turn together."""

    def __init__(self, loop: Loop, fd: int = 2) -> None:
        self._loop = loop
        self._fd, self._socket = _without_blocking(fd)
        self._lines: list[str] = []
        self._pending = b""
        self._second = -1
        self._stamp = ""
        self._time = ""
        self._json = False
        self.threshold = LEVELS["info"]
        #: level of what policies had to say about a connection
        self.rbac_level = "debug"
        self.dropped = 0

    def configure(self, level: str, log_format: str) -> None:
        """Level by name, form ``plain`` or ``json``."""
        self.set_level(level)
        self._json = log_format == "json"

    def set_level(self, level: str) -> None:
        """Unknown levels count as info; the main process has checked its configuration."""
        self.threshold = LEVELS.get(level, LEVELS["info"])

    def wants(self, level: str) -> bool:
        """Whether lines of this level are written."""
        return LEVELS[level] >= self.threshold

    def line(
        self, level: str, target: str, message: str, fields: Iterable[Field | Fragment] = ()
    ) -> None:
        """Queue one line."""
        if LEVELS[level] < self.threshold:
            return
        if not self._lines:
            self._loop.at_turn_end.append(self.flush)
            self._time = self._timestamp()  # of the turn, which is over in a moment
        if self._json:
            body = {"level": level, "time": self._time, "scope": target, "message": message}
            for item in fields:
                parts = item.fields if isinstance(item, Fragment) else (item,)
                body.update((name, value) for name, value, _ in parts)
            self._lines.append(json.dumps(body))
            return
        text = " ".join(
            [
                item.text
                if isinstance(item, Fragment)
                else f"{item[0]}={_quote(item[1]) if item[2] else item[1]}"
                for item in fields
            ]
        )
        self._lines.append(f"{self._time}\t{level}\t{target}\t{message}\t{text}")

    def _timestamp(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((now - second) * 1_000_000):06d}Z"

    def flush(self) -> None:
        """Write what was queued, as far as the descriptor takes it."""
        if self._lines:
            self._lines.append("")
            self._pending += "\n".join(self._lines).encode(errors="replace")
            self._lines.clear()
        if not self._pending:
            return
        self._pending = self._pending[self._write(self._pending) :]
        if len(self._pending) > _MAX_PENDING_BYTES:
            # the first line may have been written in part: keep its rest
            first, _, lost = self._pending.partition(b"\n")
            self.dropped += lost.count(b"\n")
            self._pending = first + b"\n"
        elif self._pending:
            self._loop.call_later(_RETRY_SECONDS, self.flush)

    def _write(self, data: bytes) -> int:
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:  # nobody reads the log any more: there is nowhere to say so
            self.dropped += data.count(b"\n")
            return len(data)


def _without_blocking(fd: int) -> tuple[int, socket.socket | None]:
    """A way to write to ``fd`` that never waits.

    The flag O_NONBLOCK would be seen by every process that shares the descriptor. So a socket
    (what the journal gives to services) is written with MSG_DONTWAIT, and a pipe is opened anew;
    files never make anybody wait.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return fd, socket.socket(fileno=os.dup(fd))
    if stat.S_ISFIFO(mode):
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), None
    return fd, None


def _quote(value: str) -> str:
    if '"' in value or "\\" in value or "\n" in value:
        return json.dumps(value)
    return f'"{value}"'
