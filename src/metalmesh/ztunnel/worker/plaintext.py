"""Inbound plaintext (port 15006): connections that reach a workload without a tunnel.

They have no identity, which is what policies like STRICT refuse. The application sees the
client's own address.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from metalmesh.constants import ILLEGAL_PORTS
from metalmesh.errors import PolicyDeniedError
from metalmesh.hbone.headers import format_authority
from metalmesh.net.sockets import original_destination, reset_on_close
from metalmesh.policy.l4 import Connection
from metalmesh.ztunnel.worker.dial import Dial
from metalmesh.ztunnel.worker.flow import CONNECT, INBOUND, OK, Flow
from metalmesh.ztunnel.worker.metrics import Party
from metalmesh.ztunnel.worker.pipe import Pipe
from metalmesh.ztunnel.worker.workloads import MAX_WAITING

if TYPE_CHECKING:
    import socket

    from metalmesh.ztunnel.messages import Labels
    from metalmesh.ztunnel.worker.server import WorkloadServer


class PlaintextConnection:
    """One captured inbound connection."""

    #: the node's packet rules have seen its port
    tunneled = False

    def __init__(self, server: WorkloadServer, sock: socket.SocketType, ip: str, port: int) -> None:
        self._server = server
        self._client = sock
        self._client_port = port
        address, self._port = original_destination(sock)
        self._address = address
        self.subject = Connection(ip_address(ip), ip_address(address), self._port)
        source = format_authority(ip, port)
        self._flow = Flow(server.context.recorder, INBOUND, server.workload.uid, source)
        self._flow.dst_addr = self._flow.original_dst = format_authority(address, self._port)
        self._pipe = Pipe(server.context.loop, self._flow, self._ended)
        self._dial: Dial | None = None
        self._over = False

    def begin(self) -> None:
        """Refuse what is not for us, label the source, have the policies decide."""
        workload = self._server.workload
        if self._port in ILLEGAL_PORTS:
            self._refuse(f"port {self._port} belongs to the proxy itself", CONNECT)
        elif workload.identity is not None and self._is_foreign():
            pass  # refused
        else:
            self._flow.destination = workload.party
            self._server.context.sources.lookup(str(self.subject.source_ip), self._labelled)

    def _is_foreign(self) -> bool:
        """Refuse a destination that is not the workload's, as far as that is known."""
        addresses = self._server.workload.addresses
        if self._address in addresses:
            return False
        own = ", ".join(sorted(addresses))
        self._refuse(f"ip mismatch: {self._address} != {own}", CONNECT)
        return True

    def _labelled(self, labels: Labels | None) -> None:
        if self._over:
            return
        workload = self._server.workload
        known = {key: value for key, value in (labels or {}).items() if key != "principal"}
        self._flow.source = Party(known)
        self._flow.open()
        workload.inbound[self] = None  # before the first check, so that no change is missed
        if workload.decidable:
            self.admit()
        elif len(workload.undecided) >= MAX_WAITING:
            self._refuse(workload.unknown_error, CONNECT)
        else:
            workload.undecided[self] = None
            self._server.context.undecided.add(self)

    def expire(self) -> None:
        """The policies did not arrive: nothing is let through on a guess."""
        self._server.workload.undecided.pop(self, None)
        if not self._over:
            _, error, flags = self._server.workload.undecided_verdict()
            self._refuse(error, flags)

    def admit(self) -> None:
        """Everything is there: decide, and connect to the application."""
        if self._over:
            return
        self._server.context.undecided.discard(self)
        if self._is_foreign():
            return
        try:
            self._server.workload.judge(self.subject, tunneled=False)
        except PolicyDeniedError as denied:
            self._refuse(str(denied.args[0]), denied.args[1])
            return
        self._dial = Dial(self._server.context, self._connected)
        self._dial.start(
            self._server.workload.netns_fd,
            self._address,
            self._port,
            str(self.subject.source_ip),
            self._client_port,
        )

    def _connected(self, sock: socket.SocketType | None, error: str) -> None:
        self._dial = None
        if sock is None:
            self._refuse(error, CONNECT)
        else:
            self._pipe.start(sock, self._client)

    def refuse(self, error: str, flags: str) -> None:
        """The policies have changed."""
        self.abort(error, flags)

    def abort(self, error: str, flags: str = OK) -> None:
        """Close at once."""
        if self._pipe.ends:
            self._pipe.abort(error, flags)
        else:
            self._refuse(error, flags)

    def _refuse(self, error: str, flags: str) -> None:
        if self._over:
            return
        if self._dial is not None:
            self._dial.cancel()
        reset_on_close(self._client)
        self._server.context.loop.close(self._client)
        self._flow.finish(error, flags)
        self._forget()

    def _ended(self, _pipe: Pipe) -> None:
        self._forget()

    def _forget(self) -> None:
        self._over = True
        workload = self._server.workload
        workload.inbound.pop(self, None)
        workload.undecided.pop(self, None)
        self._server.context.undecided.discard(self)
        self._server.plain.pop(self, None)
