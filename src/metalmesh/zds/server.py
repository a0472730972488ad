"""The agent's end of ZDS, without I/O (istio-facts 9.1).

Every connection is in lock-step: one request, one answer. A ztunnel that has said hello gets what
is there, then ``SnapshotSent``, then changes. Additions go to the newest ztunnel only, removals to
all. A late answer keeps the connection, since the protocol cannot tell which request an answer
belongs to; a refused addition is sent again. Facts are returned as events, nothing is logged.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from metalmesh.errors import ProtocolError
from metalmesh.zds.messages import (
    AddWorkload,
    DelWorkload,
    KeepWorkload,
    Request,
    SnapshotSent,
    decode_hello,
    decode_response,
)

#: a ztunnel must say hello, and answer a request, within this time
DEADLINE_SECONDS: Final = 5.0
#: an addition the ztunnel refused is sent again after this time
RETRY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request; an AddWorkload with the descriptor of its netns."""

    connection: int
    request: Request


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A ztunnel did what it was asked."""

    connection: int
    request: Request


@dataclass(frozen=True, slots=True)
class Refused:
    """A ztunnel could not do it; an addition will be sent again."""

    connection: int
    request: Request
    error: str


@dataclass(frozen=True, slots=True)
class Overdue:
    """No answer within the deadline; the connection is kept."""

    connection: int
    request: Request


@dataclass(frozen=True, slots=True)
class Close:
    """Close this connection."""

    connection: int
    reason: str


Event = Send | Acknowledged | Refused | Overdue | Close


@dataclass(slots=True)
class _Connection:
    """One ztunnel."""

    number: int
    deadline_at: float
    ready: bool = False
    queue: deque[Request] = field(default_factory=deque)
    outstanding: Request | None = None
    overdue: bool = False
    #: uids it serves or was asked to serve
    told: set[str] = field(default_factory=set)
    retries: dict[str, float] = field(default_factory=dict)


class ZdsServer:
    """All connections of one agent; numbers of connections are the shell's."""

    def __init__(self) -> None:
        self._workloads: dict[str, AddWorkload | KeepWorkload] = {}
        self._connections: dict[int, _Connection] = {}
        self._events: list[Event] = []

    # --- workloads -------------------------------------------------------------------------
    def add(self, workload: AddWorkload | KeepWorkload, now: float) -> None:
        """Have a workload served by the newest ztunnel; a Keep is told in snapshots only."""
        self._workloads[workload.uid] = workload
        newest = self._newest()
        if newest is not None and isinstance(workload, AddWorkload):
            self._enqueue(newest, workload, now)

    def remove(self, uid: str, now: float) -> None:
        """Have every ztunnel stop serving a workload."""
        if self._workloads.pop(uid, None) is None:
            return
        for connection in self._connections.values():
            connection.retries.pop(uid, None)
            if connection.ready and uid in connection.told:
                connection.told.discard(uid)
                self._enqueue(connection, DelWorkload(uid), now)

    @property
    def workloads(self) -> frozenset[str]:
        """Uids of the workloads that are to be served."""
        return frozenset(self._workloads)

    # --- connections -----------------------------------------------------------------------
    def connected(self, number: int, now: float) -> None:
        """A ztunnel has connected; it must say hello first."""
        self._connections[number] = _Connection(number, now + DEADLINE_SECONDS)

    def disconnected(self, number: int, now: float) -> None:
        """A connection is gone; the newest of the remaining ones catches up."""
        self._connections.pop(number, None)
        newest = self._newest()
        if newest is not None:
            for workload in self._workloads.values():
                if isinstance(workload, AddWorkload) and workload.uid not in newest.told:
                    self._enqueue(newest, workload, now)

    def received(self, number: int, packet: bytes, now: float) -> None:
        """Handle one packet; raise :class:`ProtocolError` when the connection must go."""
        connection = self._connections[number]
        if not connection.ready:
            decode_hello(packet)
            connection.ready = True
            self._send_snapshot(connection, now)
            return
        request = connection.outstanding
        if request is None:
            raise ProtocolError("ZDS answer without a request before it")
        ack = decode_response(packet)
        connection.outstanding = None
        if ack.error:
            self._refuse(connection, request, ack.error, now)
        else:
            self._events.append(Acknowledged(number, request))
        self._proceed(connection, now)

    def failed(self, number: int, error: str, now: float) -> None:
        """The shell could not send the outstanding request (its netns is gone, say)."""
        connection = self._connections.get(number)
        if connection is not None and connection.outstanding is not None:
            request, connection.outstanding = connection.outstanding, None
            self._refuse(connection, request, error, now)
            self._proceed(connection, now)

    @property
    def ready_connections(self) -> int:
        """Ztunnels that have said hello."""
        return sum(connection.ready for connection in self._connections.values())

    # --- time ------------------------------------------------------------------------------
    def next_deadline(self) -> float | None:
        """When :meth:`handle_deadline` wants to be called next."""
        moments = [
            moment for connection in self._connections.values() for moment in _moments(connection)
        ]
        return min(moments, default=None)

    def handle_deadline(self, now: float) -> None:
        """Act on everything that is due."""
        for connection in list(self._connections.values()):
            if not connection.ready:
                if connection.deadline_at <= now:
                    reason = f"no hello within {DEADLINE_SECONDS:g} s"
                    self._events.append(Close(connection.number, reason))
                    del self._connections[connection.number]
                continue
            waiting = connection.outstanding
            if waiting is not None and not connection.overdue and connection.deadline_at <= now:
                connection.overdue = True
                self._events.append(Overdue(connection.number, waiting))
            for uid in [uid for uid, at in connection.retries.items() if at <= now]:
                del connection.retries[uid]
                workload = self._workloads.get(uid)
                if connection is self._newest() and isinstance(workload, AddWorkload):
                    self._enqueue(connection, workload, now)

    def events(self) -> list[Event]:
        """Take what happened since the last call."""
        events, self._events = self._events, []
        return events

    # --- inside ----------------------------------------------------------------------------
    def _newest(self) -> _Connection | None:
        ready = [connection for connection in self._connections.values() if connection.ready]
        return ready[-1] if ready else None

    def _send_snapshot(self, connection: _Connection, now: float) -> None:
        for workload in self._workloads.values():
            connection.told.add(workload.uid)
            connection.queue.append(workload)
        connection.queue.append(SnapshotSent())
        self._proceed(connection, now)

    def _enqueue(self, connection: _Connection, request: Request, now: float) -> None:
        if isinstance(request, AddWorkload):
            connection.told.add(request.uid)
        connection.queue.append(request)
        self._proceed(connection, now)

    def _proceed(self, connection: _Connection, now: float) -> None:
        while connection.outstanding is None and connection.queue:
            request = connection.queue.popleft()
            if isinstance(request, AddWorkload) and self._workloads.get(request.uid) != request:
                continue  # removed or replaced while it waited
            connection.outstanding = request
            connection.overdue = False
            connection.deadline_at = now + DEADLINE_SECONDS
            self._events.append(Send(connection.number, request))

    def _refuse(self, connection: _Connection, request: Request, error: str, now: float) -> None:
        self._events.append(Refused(connection.number, request, error))
        if isinstance(request, AddWorkload):
            connection.retries[request.uid] = now + RETRY_SECONDS


def _moments(connection: _Connection) -> list[float]:
    moments = list(connection.retries.values())
    waiting = connection.outstanding is not None and not connection.overdue
    if waiting or not connection.ready:
        moments.append(connection.deadline_at)
    return moments
