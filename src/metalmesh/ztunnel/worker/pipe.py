"""Copying between two sockets: connections that do not go through a tunnel.

As cheap as the tunnel: one large receive and one send per batch, nothing per byte.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from metalmesh.net.sockets import reset_on_close
from metalmesh.ztunnel.worker.flow import OK
from metalmesh.ztunnel.worker.loop import ERROR, HANGUP, PAUSED, READ, READ_HANGUP, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.ztunnel.worker.flow import Flow
    from metalmesh.ztunnel.worker.loop import Loop


class PipeEnd:
    """One socket of a pipe; what it receives goes to ``other``."""

    __slots__ = (
        "_events",
        "backlog",
        "broken",
        "is_app",
        "other",
        "pipe",
        "read_ended",
        "sock",
        "write_shut",
    )

    def __init__(self, pipe: Pipe, sock: socket.SocketType, *, is_app: bool) -> None:
        self.pipe = pipe
        self.sock = sock
        self.is_app = is_app
        self.other: PipeEnd = self
        #: what this socket has not taken yet
        self.backlog = memoryview(b"")
        self.broken = ""
        self.read_ended = False
        self.write_shut = False
        self._events = 0

    def update_interest(self) -> None:
        """Read while the other side keeps up; write while there is a backlog."""
        if self.pipe.over:
            return
        events = 0
        if not self.read_ended and not self.other.backlog:
            events = READ | READ_HANGUP
        if self.backlog:
            events |= WRITE
        events = events or PAUSED
        if events == self._events:
            return
        if self._events == 0:
            self.pipe.loop.watch(self.sock.fileno(), events, self)
        else:
            self.pipe.loop.rewatch(self.sock.fileno(), events)
        self._events = events

    def on_event(self, events: int) -> None:
        """The socket is ready."""
        if self.pipe.over:
            return
        try:
            if events & WRITE and self.backlog:
                self._push()
            if events & (READ | READ_HANGUP | HANGUP | ERROR) and not self.pipe.over:
                self._pull(events)
        except BlockingIOError:
            pass
        except OSError as error:
            self.pipe.abort(f"io error: {error}")

    def on_fault(self) -> None:
        """A bug of ours ends this connection only."""
        self.pipe.abort("internal error")

    def _pull(self, events: int) -> None:
        if self.read_ended or self.other.backlog:
            if events & ERROR:
                self.pipe.abort("connection reset")
            return
        buffer = self.pipe.loop.cipher
        size = self.sock.recv_into(buffer)
        if size == 0:
            if self.broken:
                self.pipe.abort(self.broken)
                return
            self.read_ended = True
            self.other.check_end()
        else:
            self.pipe.count(size, from_app=self.is_app)
            self.other.put(buffer[:size])
        self.update_interest()

    def put(self, view: memoryview) -> None:
        """Send to this socket; keep a copy of what it does not take."""
        if self.broken:
            return
        try:
            sent = self.sock.send(view)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(f"io error: {error}")
            return
        if sent < len(view):
            self.backlog = memoryview(bytes(view[sent:]))
            self.update_interest()

    def _fail(self, error: str) -> None:
        """This socket takes no more; what it has sent before (an early answer) is read first."""
        self.broken = error
        self.backlog = memoryview(b"")
        if self.read_ended:
            self.pipe.abort(error)
        else:
            self.update_interest()

    def _push(self) -> None:
        self.backlog = self.backlog[self.sock.send(self.backlog) :]
        if not self.backlog:
            self.check_end()
            self.update_interest()
            self.other.update_interest()

    def check_end(self) -> None:
        """Pass the other side's FIN on when everything before it is gone."""
        if not self.other.read_ended or self.backlog or self.write_shut or self.pipe.over:
            return
        self.write_shut = True
        if self.other.write_shut and self.read_ended:
            self.pipe.close()
        else:
            self.sock.shutdown(socket.SHUT_WR)


class Pipe:
    """Two sockets and the flow they belong to."""

    __slots__ = ("ends", "flow", "loop", "on_over", "over")

    def __init__(self, loop: Loop, flow: Flow, on_over: Callable[[Pipe], None]) -> None:
        self.loop = loop
        self.flow = flow
        self.on_over = on_over
        self.over = False
        self.ends: tuple[PipeEnd, ...] = ()

    def start(self, app: socket.SocketType, peer: socket.SocketType) -> None:
        """Copy both ways; ``app`` is the local application's socket."""
        left, right = PipeEnd(self, app, is_app=True), PipeEnd(self, peer, is_app=False)
        left.other, right.other = right, left
        self.ends = (left, right)
        left.update_interest()
        right.update_interest()

    def count(self, size: int, *, from_app: bool) -> None:
        """Bytes on their way."""
        if from_app:
            self.flow.from_app += size
        else:
            self.flow.to_app += size

    def close(self) -> None:
        """Both directions have ended in good order."""
        self._end("", OK)

    def abort(self, error: str, flags: str = OK) -> None:
        """Reset both sides."""
        for end in self.ends:
            reset_on_close(end.sock)
        self._end(error, flags)

    def _end(self, error: str, flags: str) -> None:
        if self.over:
            return
        self.over = True
        for end in self.ends:
            self.loop.close(end.sock)
        self.flow.finish(error, flags)
        self.on_over(self)
