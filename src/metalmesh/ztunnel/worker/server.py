"""Everything a worker runs for one local workload: its three listeners and its pool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from metalmesh.constants import PORT_HBONE
from metalmesh.hbone import baggage
from metalmesh.hbone.headers import format_authority, response_block
from metalmesh.net.sockets import accept, canonical
from metalmesh.routing.outliers import Outliers
from metalmesh.ztunnel.worker.inbound import InboundConnection
from metalmesh.ztunnel.worker.loop import EXCLUSIVE, READ
from metalmesh.ztunnel.worker.outbound import OutboundConnection
from metalmesh.ztunnel.worker.plaintext import PlaintextConnection
from metalmesh.ztunnel.worker.pool import Pool
from metalmesh.ztunnel.worker.routes import Routes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Protocol

    from metalmesh.ztunnel.messages import UpdateWorkload
    from metalmesh.ztunnel.worker.context import Context
    from metalmesh.ztunnel.worker.workloads import Workload

    class Abortable(Protocol):
        """A connection that can be closed at once."""

        def abort(self, error: str) -> None:
            """Close it."""


#: connections taken per wake-up, so that other events get their turn
_BATCH: Final = 16
#: pause of a listener when descriptors have run out, seconds
_EXHAUSTED_PAUSE_SECONDS: Final = 0.1
REMOVED: Final = "workload removed"


class Listener:
    """Accepts connections of one listening socket, which other workers share."""

    def __init__(
        self,
        context: Context,
        sock: socket.socket,
        take: Callable[[socket.SocketType, str, int], None],
    ) -> None:
        self._context = context
        self._sock = sock
        self._take = take
        self._closed = False
        self._watch()

    def _watch(self) -> None:
        if not self._closed:
            self._context.loop.watch(self._sock.fileno(), READ | EXCLUSIVE, self)

    def on_event(self, _events: int) -> None:
        """Connections wait."""
        for _ in range(_BATCH):
            try:
                found = accept(self._sock)
            except OSError as error:
                self._context.log.line("error", "proxy", f"cannot accept connections: {error}")
                self._context.loop.unwatch(self._sock.fileno())
                self._context.loop.call_later(_EXHAUSTED_PAUSE_SECONDS, self._watch)
                return
            if found is None:
                return
            try:
                self._take(*found)
            except OSError as error:  # it was reset before we looked at it
                self._context.log.line("debug", "proxy", f"connection lost at once: {error}")
                self._context.loop.close(found[0])

    def on_fault(self) -> None:
        """A bug of ours with one connection; the next ones may do better."""

    def close(self) -> None:
        """Accept no more."""
        if not self._closed:
            self._closed = True
            # main and other workers hold the same open file: closing ours would leave it in
            # epoll, where it goes on taking the wake-ups that are meant for them
            self._context.loop.unwatch(self._sock.fileno())
            self._context.loop.close(self._sock)


class WorkloadServer:
    """The data path of one workload."""

    def __init__(
        self, context: Context, workload: Workload, listeners: tuple[socket.socket, ...]
    ) -> None:
        self.context = context
        self.workload = workload
        self.pool = Pool(context, workload)
        self.routes = Routes(context, workload.uid)
        #: of this workload alone: what it cannot reach others may, and must not lose through it
        self.outliers = Outliers()
        #: open connections that no pool or HBONE connection knows of
        self.outbound: dict[OutboundConnection, None] = {}
        self.plain: dict[Abortable, None] = {}
        self.inbound: dict[InboundConnection, None] = {}
        #: those among them that came before the control plane told us who we are
        self.unidentified: dict[InboundConnection, None] = {}
        self._hbone_address = ""
        self._describe()
        takers = (self._take_outbound, self._take_plaintext, self._take_hbone)
        self._listeners = [
            Listener(context, sock, take) for sock, take in zip(listeners, takers, strict=True)
        ]

    def _describe(self) -> None:
        self.baggage = baggage.encode_baggage(self.workload.party.labels)
        self.accept_block = response_block("200", self.baggage)

    def update(self, message: UpdateWorkload) -> None:
        """The workload's description has changed."""
        self.workload.update(message)
        self._describe()
        for connection in self.inbound:
            connection.forget_subjects()
        self.workload.decide_waiting()
        if self.workload.identity is not None:
            waiting, self.unidentified = self.unidentified, {}
            for connection in waiting:
                connection.identify()

    def hbone_address(self, sock: socket.SocketType | None) -> str:
        """``ip:15008``, where inbound connections arrive, for the log."""
        if sock is not None and not self._hbone_address:
            name = sock.getsockname()
            self._hbone_address = format_authority(canonical(name[0]), name[1])
        if not self._hbone_address:
            address = min(self.workload.addresses, default="")
            return format_authority(address, PORT_HBONE)
        return self._hbone_address

    # --- new connections
    def _take_outbound(self, sock: socket.SocketType, ip: str, port: int) -> None:
        connection = OutboundConnection(self, sock, ip, port)
        self.outbound[connection] = None
        connection.begin()

    def _take_plaintext(self, sock: socket.SocketType, ip: str, port: int) -> None:
        connection = PlaintextConnection(self, sock, ip, port)
        self.plain[connection] = None
        connection.begin()

    def _take_hbone(self, sock: socket.SocketType, ip: str, port: int) -> None:
        connection = InboundConnection(self, sock, ip, port)
        self.inbound[connection] = None
        connection.begin()

    def end_revoked(self) -> None:
        """End connections with peers whose certificate has been revoked."""
        for connection in list(self.inbound):
            if not connection.handshaking and self.context.revoked.found(
                connection.tls, "destination"
            ):
                connection.revoke()
        self.pool.end_revoked()

    # --- the end
    def drain(self) -> None:
        """Accept no more; let what is open end by itself."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self.inbound):
            connection.retire()
        self.pool.drain()

    def close(self, error: str = REMOVED) -> None:
        """Close everything at once."""
        for listener in self._listeners:
            listener.close()
        for tunnel in list(self.outbound):
            tunnel.abort(error)
        for plain in list(self.plain):
            plain.abort(error)
        for connection in list(self.inbound):
            connection.dismiss(error)
        self.pool.close()
        self.context.netns.forget(self.workload.netns_fd)
        os.close(self.workload.netns_fd)
