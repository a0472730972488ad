"""Serves ZDS on a unix SEQPACKET socket: the shell around :class:`metalmesh.zds.server.ZdsServer`.

A netns is opened at the moment its descriptor is sent and closed right after: a descriptor kept
open here would keep the namespace of a stopped workload alive.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Final

from metalmesh.errors import MetalmeshError, NetworkError, ProtocolError
from metalmesh.net.netns import open_netns
from metalmesh.node.groups import group_id
from metalmesh.node.netns import netns_path
from metalmesh.service.logs import Log
from metalmesh.zds.messages import MAX_PACKET_BYTES, AddWorkload, encode_request
from metalmesh.zds.server import Acknowledged, Close, Overdue, Refused, Send, ZdsServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metalmesh.node.metrics import NodeMetrics
    from metalmesh.zds.server import Event

#: connections accepted per second at most (istio-facts 9.1)
_ACCEPT_INTERVAL_SECONDS: Final = 0.2
_BACKLOG: Final = 16

log = Log("metalmesh.node.zds")


class ZdsShell:
    """The socket, its connections and the namespaces behind the uids."""

    def __init__(self, path: Path, group: str, metrics: NodeMetrics) -> None:
        self._path = path
        self._group = group
        self._metrics = metrics
        self._core = ZdsServer()
        self._netns: dict[str, tuple[str, int]] = {}
        self._connections: dict[int, socket.socket] = {}
        self._numbers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        #: uids some ztunnel serves, as far as it said
        self.acknowledged: set[str] = set()
        self.on_acknowledged: Callable[[str], None] | None = None

    # --- workloads -------------------------------------------------------------------------
    def add(self, workload: AddWorkload, netns: str, inode: int) -> None:
        """Have a workload served; ``inode`` tells its netns from a later one of that name."""
        self._netns[workload.uid] = (netns, inode)
        self._core.add(workload, self._now())
        self._pump()

    def remove(self, uid: str) -> None:
        """Have a workload served no more."""
        self._netns.pop(uid, None)
        self.acknowledged.discard(uid)
        self._core.remove(uid, self._now())
        self._pump()

    @property
    def ztunnels(self) -> int:
        """Ztunnels that are connected and have said hello."""
        return self._core.ready_connections

    # --- the socket ------------------------------------------------------------------------
    def listen(self) -> None:
        """Make the socket; only root and the ztunnel's group may connect."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        listener.bind(str(self._path))
        self._path.chmod(0o660)
        os.chown(self._path, -1, group_id(self._group))
        listener.listen(_BACKLOG)
        self._listener = listener

    async def serve(self) -> None:
        """Accept ztunnels until cancelled."""
        assert self._listener is not None, "listen() comes first"
        loop = asyncio.get_running_loop()
        try:
            while True:
                peer, _ = await loop.sock_accept(self._listener)
                self._numbers += 1
                task = loop.create_task(self._converse(self._numbers, peer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.sleep(_ACCEPT_INTERVAL_SECONDS)
        finally:
            self._listener.close()
            self._path.unlink(missing_ok=True)
            for task in self._tasks:
                task.cancel()

    async def _converse(self, number: int, peer: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._connections[number] = peer
        self._core.connected(number, self._now())
        self._pump()
        reason = "the ztunnel closed it"
        try:
            while packet := await loop.sock_recv(peer, MAX_PACKET_BYTES + 1):
                self._core.received(number, packet, self._now())
                self._pump()
        except (ProtocolError, OSError) as error:
            reason = str(error)
        finally:
            self._connections.pop(number, None)
            peer.close()
            self._core.disconnected(number, self._now())
            self._pump()
            if not self.ztunnels:
                self.acknowledged.clear()
            log.info("ztunnel disconnected", {"connection": number, "reason": reason})

    # --- events ----------------------------------------------------------------------------
    def _pump(self) -> None:
        """Act on events until there are no more, then set the clock."""
        while events := self._core.events():
            for event in events:
                self._handle(event)
        self._metrics.ztunnels.set(self.ztunnels)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._core.next_deadline()
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._on_deadline)

    def _on_deadline(self) -> None:
        self._core.handle_deadline(self._now())
        self._pump()

    def _handle(self, event: Event) -> None:
        match event:
            case Send():
                self._send(event)
            case Acknowledged(_, AddWorkload(uid=uid)):
                self.acknowledged.add(uid)
                self._metrics.zds_requests.inc(("acknowledged",))
                log.info("ztunnel serves workload", {"uid": uid})
                if self.on_acknowledged is not None:
                    self.on_acknowledged(uid)
            case Acknowledged():
                self._metrics.zds_requests.inc(("acknowledged",))
            case Refused(_, request, error):
                self._metrics.zds_requests.inc(("refused",))
                log.warning("ztunnel refused", {"request": str(request), "error": error})
            case Overdue(_, request):
                self._metrics.zds_requests.inc(("overdue",))
                log.warning("ztunnel does not answer", {"request": str(request)})
            case Close(number, reason):
                peer = self._connections.get(number)
                if peer is not None:
                    log.warning("ztunnel dropped", {"connection": number, "reason": reason})
                    peer.shutdown(socket.SHUT_RDWR)

    def _send(self, event: Send) -> None:
        peer = self._connections.get(event.connection)
        if peer is None:
            return  # it left a moment ago; its reader tells the core
        try:
            packet = encode_request(event.request)
            if isinstance(event.request, AddWorkload):
                self._send_with_netns(peer, packet, event.request.uid)
            else:
                peer.send(packet)
        except MetalmeshError as error:
            self._core.failed(event.connection, str(error), self._now())
        except OSError as error:
            # its buffers are full although it has one request at a time, or it is gone
            log.warning("ztunnel dropped", {"connection": event.connection, "reason": str(error)})
            peer.shutdown(socket.SHUT_RDWR)

    def _send_with_netns(self, peer: socket.socket, packet: bytes, uid: str) -> None:
        netns, inode = self._netns[uid]
        fd = open_netns(netns_path(netns))
        try:
            if os.fstat(fd).st_ino != inode:
                raise NetworkError(f"netns {netns} is not the one that was announced any more")
            socket.send_fds(peer, [packet], [fd])
        finally:
            os.close(fd)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
