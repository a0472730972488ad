"""The event loop of a data worker: epoll, timers, and work put off to the end of a turn.

A turn is: wait, handle every ready descriptor, let every connection with output encrypt and
send once, run due timers, write the log lines. Doing things once per turn and not once per
event is where the speed comes from.
"""

from __future__ import annotations

import heapq
import select
import sys
import time
import traceback
from itertools import count
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from metalmesh.hbone.buffers import CHUNK_BYTES, Shared

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

K = TypeVar("K")

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
ERROR: Final = select.EPOLLERR
HANGUP: Final = select.EPOLLHUP
#: the peer has sent FIN (maybe behind data that is still to be read)
READ_HANGUP: Final = select.EPOLLRDHUP
#: registered for nothing. Edge-triggered, so that a hang-up, which cannot be masked out, is
#: told once and does not spin the loop.
PAUSED: Final = select.EPOLLET

#: wake one of the workers that share a listener, not all
EXCLUSIVE: Final = select.EPOLLEXCLUSIVE

_MAX_EVENTS: Final = 512
#: decrypted bytes handled at once: what one read can decrypt to
_PLAIN_BYTES: Final = CHUNK_BYTES
#: longest piece of an unfinished frame kept from one read to the next, plus one record
_MARGIN_BYTES: Final = 2 * 65536 + 16384


class Handler(Protocol):
    """Whoever waits for events of a descriptor."""

    def on_event(self, events: int) -> None:
        """``events`` is the epoll mask; may also come when nothing has happened."""

    def on_fault(self) -> None:
        """``on_event`` raised what it must not raise: give up what it was about."""


class Flusher(Protocol):
    """Whoever gathered output in this turn."""

    def flush(self) -> None:
        """Encrypt and send it."""

    def on_fault(self) -> None:
        """``flush`` raised what it must not raise: give up what it was about."""


class Timer:
    """A call at a time; ``cancel`` makes it void."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The callback will not be called; drops the references it holds."""
        self.callback = None


class Loop:
    """Descriptors, timers, flushers and the buffers they all share."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._closing: list[socket.SocketType] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._stopped = False
        self.dirty: list[Flusher] = []
        #: called once, at the end of this turn
        self.at_turn_end: list[Callable[[], None]] = []
        self.shared = Shared()
        #: what a read from the network lands in, and what it is decrypted to
        self.cipher = memoryview(bytearray(CHUNK_BYTES))
        self.plain = memoryview(bytearray(_PLAIN_BYTES + _MARGIN_BYTES))
        self.plain_limit = _PLAIN_BYTES
        #: monotonic seconds at the start of the turn
        self.now = time.monotonic()

    # --- descriptors
    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Start to watch a descriptor."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def rewatch(self, fd: int, events: int) -> None:
        """Change what a watched descriptor is watched for."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop to watch a descriptor that stays open."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self, sock: socket.SocketType) -> None:
        """Close a socket at the end of the turn.

        Not at once: its number could come back for a new connection in the same batch of
        events, which would then get the events of the old one.
        """
        self._handlers.pop(sock.fileno(), None)
        self._closing.append(sock)

    # --- timers
    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call once at monotonic ``when``."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call once in ``seconds``."""
        return self.call_at(self.now + seconds, callback)

    @staticmethod
    def current_time() -> float:
        """Monotonic seconds now, where ``now`` (start of the turn) is not good enough."""
        return time.monotonic()

    # --- running
    def stop(self) -> None:
        """Leave :meth:`run` when the turn ends."""
        self._stopped = True

    def run(self) -> None:
        """Turn until stopped."""
        poll, handlers, monotonic = self._epoll.poll, self._handlers, time.monotonic
        timers = self._timers
        while not self._stopped:
            timeout = max(0.0, timers[0][0] - self.now) if timers else -1
            events = poll(timeout, _MAX_EVENTS)
            self.now = monotonic()
            for fd, mask in events:
                handler = handlers.get(fd)
                if handler is not None:
                    try:
                        handler.on_event(mask)
                    except Exception:  # one connection's fault must not end all others
                        self._contain(handler, fd)
            if timers and timers[0][0] <= self.now:
                self._run_timers()
            if self.dirty or self._closing or self.at_turn_end:
                self._end_turn()

    def _contain(self, culprit: Handler | Flusher, fd: int = -1) -> None:
        """End what a bug of ours was about: left alone it would come back every turn."""
        report_fault(culprit)
        try:
            culprit.on_fault()
        except Exception:  # as above; at least it must not be called again
            report_fault(culprit)
            self.unwatch(fd)

    def _run_timers(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            callback = heapq.heappop(timers)[2].callback
            if callback is not None:
                try:
                    callback()
                except Exception:  # as above
                    report_fault(callback)

    def _end_turn(self) -> None:
        while self.dirty:
            dirty, self.dirty = self.dirty, []
            for flusher in dirty:
                try:
                    flusher.flush()
                except Exception:  # as above
                    self._contain(flusher)
        if self._closing:
            closing, self._closing = self._closing, []
            for sock in closing:
                sock.close()
        if self.at_turn_end:
            callbacks, self.at_turn_end = self.at_turn_end, []
            for callback in callbacks:
                callback()


def report_fault(where: object) -> None:
    """A bug of ours: say so with its traceback; whatever it was about is left as it is."""
    sys.stderr.write(f"worker: internal error in {where!r}\n{traceback.format_exc()}")


class Deadlines(Generic[K]):
    """Many things that must happen within the same time, checked once a second.

    A heap entry per connection would outlive most connections; here one that is done in time
    costs two dictionary operations.
    """

    def __init__(self, loop: Loop, seconds: float, expired: Callable[[K], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._expired = expired
        self._due: dict[K, float] = {}
        self._armed = False

    def __len__(self) -> int:
        return len(self._due)

    def add(self, item: K) -> None:
        """``expired(item)`` is called unless ``discard`` comes first."""
        self._due[item] = self._loop.now + self._seconds
        if not self._armed:
            self._armed = True
            self._loop.call_later(min(1.0, self._seconds), self._sweep)

    def discard(self, item: K) -> None:
        """Done in time (or already expired)."""
        self._due.pop(item, None)

    def _sweep(self) -> None:
        now = self._loop.now
        late = []
        for item, due in self._due.items():
            if due > now:
                break
            late.append(item)
        for item in late:
            if self._due.pop(item, None) is not None:
                self._expired(item)
        self._armed = bool(self._due)
        if self._armed:
            self._loop.call_later(min(1.0, self._seconds), self._sweep)
