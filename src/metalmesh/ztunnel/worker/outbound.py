"""Outbound capture (port 15001): where a workload's own connections go.

The original destination is asked of main once per address and port; then the connection gets
a stream of a pooled HBONE connection, or a plain TCP connection with the proxy's mark.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from metalmesh.constants import ILLEGAL_PORTS
from metalmesh.hbone import baggage, headers
from metalmesh.hbone import frames as fr
from metalmesh.net.sockets import original_destination, reset_on_close
from metalmesh.ztunnel.messages import Endpoint
from metalmesh.ztunnel.worker.context import ANSWER_SECONDS
from metalmesh.ztunnel.worker.dial import Dial
from metalmesh.ztunnel.worker.flow import CONNECT, OK, OUTBOUND, Flow
from metalmesh.ztunnel.worker.pipe import Pipe
from metalmesh.ztunnel.worker.pool import PoolKey
from metalmesh.ztunnel.worker.tunnel import Tunnel

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from metalmesh.ztunnel.messages import Route
    from metalmesh.ztunnel.worker.pool import PoolConnection
    from metalmesh.ztunnel.worker.server import WorkloadServer

RECURSIVE: Final = "attempted recursive call to ourselves"
_STATUS_TEXT: Final = {
    "400": "Bad Request",
    "401": "Unauthorized",
    "403": "Forbidden",
    "404": "Not Found",
    "429": "Too Many Requests",
    "500": "Internal Server Error",
    "502": "Bad Gateway",
    "503": "Service Unavailable",
    "504": "Gateway Timeout",
}


def choose_endpoint(endpoints: tuple[Endpoint, ...]) -> Endpoint:
    """One endpoint at random, by weight."""
    total = sum(endpoint.weight for endpoint in endpoints)
    if len(endpoints) == 1 or total <= 0:
        return endpoints[0]
    point = int.from_bytes(os.urandom(6), "big") % total
    for endpoint in endpoints:
        point -= endpoint.weight
        if point < 0:
            return endpoint
    return endpoints[-1]


class OutboundConnection(Tunnel):
    """A connection of a local application, from its capture on."""

    __slots__ = (
        "_client_ip",
        "_client_port",
        "_destination",
        "_endpoint",
        "_retried",
        "_route",
        "_server",
    )

    def __init__(self, server: WorkloadServer, sock: socket.SocketType, ip: str, port: int) -> None:
        source = headers.format_authority(ip, port)
        super().__init__(
            server.context.loop,
            Flow(server.context.recorder, OUTBOUND, server.workload.uid, source),
        )
        self._server = server
        self._client_ip = ip
        self._client_port = port
        self._destination = ("", 0)
        self._route: Route | None = None
        self._endpoint: Endpoint | None = None
        self._retried = False
        self.attach(sock)

    def begin(self) -> None:
        """Find out where it wants to go and ask for the route."""
        assert self.sock is not None
        self._destination = ip, port = original_destination(self.sock)
        self.flow.original_dst = headers.format_authority(ip, port)
        own = ip in self._server.workload.addresses or ip == "::1" or ip.startswith("127.")
        if own and port in ILLEGAL_PORTS:
            self.terminate(RECURSIVE, CONNECT)
            return
        self._server.routes.request((ip, port), self)

    def expire(self) -> None:
        """No route came, or the peer has not answered our CONNECT."""
        if self.mux is None:
            self._server.routes.forget(self._destination, self)
            self.terminate(self._server.workload.unknown_error, CONNECT)
        else:
            error = f"connection failed: no answer to CONNECT within {ANSWER_SECONDS:.0f} s"
            self.abort(error, CONNECT, fr.CANCEL)

    def routed(self, route: Route) -> None:
        """Main has decided."""
        if self.over:
            return
        flow = self.flow
        self._route = route
        flow.service = route.service
        flow.source = self._server.workload.party
        if route.kind == "error":
            self.terminate(route.error, CONNECT)
            return
        if route.kind == "passthrough" or not route.endpoints:
            endpoint = Endpoint(address=flow.original_dst)
        else:
            endpoint = choose_endpoint(route.endpoints)
        self._endpoint = endpoint
        flow.dst_addr = endpoint.address
        flow.destination = self._server.routes.party(endpoint)
        if route.kind != "hbone":
            flow.open()
            self._go_plain(endpoint)
            return
        flow.hbone_addr = endpoint.authority
        flow.mutual_tls = True
        flow.open()
        self._request_tunnel()

    # --- without a tunnel
    def _go_plain(self, endpoint: Endpoint) -> None:
        assert self.sock is not None
        host, _, port = endpoint.address.rpartition(":")
        plain = PlainConnection(self._server, self.flow, self.sock)
        self.over = True  # the socket and the flow are the pipe's now
        self._server.outbound.pop(self, None)
        plain.connect(host.strip("[]"), int(port))

    # --- through a tunnel
    def _request_tunnel(self) -> None:
        workload, endpoint = self._server.workload, self._endpoint
        if workload.identity is None or endpoint is None:
            self.terminate(workload.unknown_error, CONNECT)
            return
        identity = str(workload.identity)
        key = PoolKey(identity, endpoint.identities, self._client_ip, endpoint.address)
        self._server.pool.request(key, self)

    def tunnel_ready(self, connection: PoolConnection) -> None:
        """A connection has room: send the CONNECT."""
        assert self._endpoint is not None
        service = self.flow.service
        block = headers.connect_block(
            headers.connect_prefix(self._endpoint.authority, self._server.baggage),
            baggage.forwarded_for(
                self._client_ip, self._client_port, service.hostname if service else ""
            ),
            baggage.make_traceparent(os.urandom(24)),
        )
        connection.open_stream(self, block)
        self._server.context.answers.add(self)

    def tunnel_failed(self, error: str, flags: str) -> None:
        """No connection could be made."""
        self.terminate(error, flags)

    def on_response(self, status: str, _headers: Mapping[str, str]) -> None:
        """The other side has connected us, or not."""
        self._server.context.answers.discard(self)
        if status != "200":
            text = f"http status: {status} {_STATUS_TEXT.get(status, '')}".rstrip()
            self.abort(text, CONNECT, fr.CANCEL)
            return
        self.start()
        if not self.over:
            self._pull(0)  # the client has usually spoken already

    def on_reset(self, code: int) -> None:
        """Reset by the peer; a CONNECT it never looked at is sent again, once."""
        if not self.opened:
            self._server.context.answers.discard(self)
            if code == fr.REFUSED_STREAM and not self._retried and not self.over:
                self._retried = True
                self.mux = None
                self._request_tunnel()
                return
            self.terminate(f"connection failed: stream reset (code {code})", CONNECT)
            return
        super().on_reset(code)

    def on_over(self) -> None:
        """The connection has ended."""
        self._server.context.answers.discard(self)
        self._server.outbound.pop(self, None)


class PlainConnection:
    """A captured connection that goes on without a tunnel."""

    def __init__(self, server: WorkloadServer, flow: Flow, app: socket.SocketType) -> None:
        self._server = server
        self._flow = flow
        self._app = app
        self._pipe = Pipe(server.context.loop, flow, self._ended)
        self._dial = Dial(server.context, self._connected)
        server.plain[self] = None

    def connect(self, host: str, port: int) -> None:
        """Dial the destination, from the workload's own address."""
        self._dial.start(self._server.workload.netns_fd, host, port)

    def _connected(self, sock: socket.SocketType | None, error: str) -> None:
        if sock is None:
            self._refuse(error, CONNECT)
        else:
            self._pipe.start(self._app, sock)

    def _refuse(self, error: str, flags: str) -> None:
        reset_on_close(self._app)
        self._server.context.loop.close(self._app)
        self._server.plain.pop(self, None)
        self._flow.finish(error, flags)

    def abort(self, error: str, flags: str = OK) -> None:
        """Close at once."""
        if self._pipe.ends:
            self._pipe.abort(error, flags)
        else:
            self._dial.cancel()
            self._refuse(error, flags)

    def _ended(self, _pipe: Pipe) -> None:
        self._server.plain.pop(self, None)
