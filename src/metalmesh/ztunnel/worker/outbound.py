"""Outbound capture (port 15001): where a workload's own connections go.

The original destination is asked of main once per address and port; then the connection gets
a stream of a pooled HBONE connection, or a plain TCP connection with the proxy's mark. While no
endpoint has accepted it, it may go on to another one; if none does, the application gets a reset.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from metalmesh.constants import ILLEGAL_PORTS
from metalmesh.hbone import baggage, headers
from metalmesh.hbone import frames as fr
from metalmesh.net.sockets import original_destination
from metalmesh.ztunnel.messages import Endpoint
from metalmesh.ztunnel.worker.attempts import (
    ATTEMPT_SECONDS,
    RETRIABLE,
    RETRIABLE_STATUSES,
    Attempts,
    first_endpoint,
    key_of,
)
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


class OutboundConnection(Tunnel):
    """A connection of a local application, from its capture on."""

    __slots__ = (
        "_attempts",
        "_client_ip",
        "_client_port",
        "_destination",
        "_dial",
        "_endpoint",
        "_hurried",
        "_retried",
        "_route",
        "_server",
        "_started_at",
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
        #: another endpoint may be tried, so this one gets a part of the time only
        self._hurried = False
        self._attempts: Attempts | None = None
        self._dial: Dial | None = None
        self._started_at = 0.0
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
        """No route came, or the endpoint has not answered in time."""
        if self._endpoint is None:
            self._server.routes.forget(self._destination, self)
            self.terminate(self._server.workload.unknown_error, CONNECT)
        elif not self._hurried:
            error = f"connection failed: no answer to CONNECT within {ANSWER_SECONDS:.0f} s"
            self.abort(error, CONNECT, fr.CANCEL)
        elif self._endpoint.authority and self._lacks_certificate:
            self._hurried = False  # no fault of the endpoint's; the certificate has its own time
        else:
            self._failed(f"connection timed out: no answer within {ATTEMPT_SECONDS:.1f} s", CONNECT)

    @property
    def _lacks_certificate(self) -> bool:
        identity = self._server.workload.identity
        return identity is None or self._server.context.certificates.get(str(identity)) is None

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
            endpoint = first_endpoint(self._server, route.endpoints)
        self._started_at = self.loop.now
        self._describe(endpoint)
        flow.open()
        self._attempt(endpoint, last=len(route.endpoints) < 2)

    # --- one endpoint after the other
    def _describe(self, endpoint: Endpoint) -> None:
        """Have logs and metrics name this endpoint."""
        flow = self.flow
        self._endpoint = endpoint
        flow.dst_addr = endpoint.address
        flow.destination = self._server.routes.party(endpoint)
        flow.hbone_addr = endpoint.authority
        flow.mutual_tls = bool(endpoint.authority)

    def _attempt(self, endpoint: Endpoint, *, last: bool) -> None:
        self._hurried = not last
        if self._hurried:
            self._server.context.hurried.add(self)
        if endpoint.authority:
            self._request_tunnel()
        else:
            self._dial_plainly(endpoint)

    def _failed(self, error: str, flags: str) -> None:
        """The endpoint has not accepted us: try another one, or give up with a reset."""
        self._withdraw()
        endpoint, route = self._endpoint, self._route
        if endpoint is None or route is None or self.over:
            return
        if flags not in RETRIABLE or len(route.endpoints) < 2:
            self.terminate(error, flags)
            return
        if self._attempts is None:
            self._attempts = Attempts(self._server, route.endpoints, self._started_at)
        following = self._attempts.failed(endpoint, error)
        if following is None:
            self.terminate(error, flags)
            return
        self.flow.give_up_attempt(error, flags)
        self._describe(following)
        self.flow.begin_attempt()
        self._attempt(following, last=self._attempts.last)

    def _withdraw(self) -> None:
        """Stop whatever the present attempt is waiting for."""
        context = self._server.context
        context.hurried.discard(self)
        context.answers.discard(self)
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.cancel()
        if self.mux is not None:
            self.mux.reset_stream(self, fr.CANCEL)
            self.mux = None
        elif self._endpoint is not None and self._endpoint.authority:
            self._server.pool.withdraw(self)

    def _accepted(self) -> None:
        """The endpoint has accepted the connection."""
        context = self._server.context
        (context.hurried if self._hurried else context.answers).discard(self)
        if self._server.outliers.records and self._endpoint is not None:
            self._server.outliers.succeeded(key_of(self._endpoint), self.loop.now)

    # --- without a tunnel
    def _dial_plainly(self, endpoint: Endpoint) -> None:
        host, _, port = endpoint.address.rpartition(":")
        self._dial = Dial(self._server.context, self._dialled)
        self._dial.start(self._server.workload.netns_fd, host.strip("[]"), int(port))

    def _dialled(self, sock: socket.SocketType | None, error: str) -> None:
        self._dial = None
        if sock is None:
            self._failed(error, CONNECT)
            return
        assert self.sock is not None
        self._accepted()
        self.over = True  # the socket and the flow are the pipe's now
        self._server.outbound.pop(self, None)
        PlainConnection(self._server, self.flow).start(self.sock, sock)

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
        if not self._hurried:
            self._server.context.answers.add(self)

    def tunnel_failed(self, error: str, flags: str) -> None:
        """No connection could be made."""
        if self._lacks_certificate:
            self.terminate(error, flags)
        else:
            self._failed(error, flags)

    def on_response(self, status: str, _headers: Mapping[str, str]) -> None:
        """The other side has connected us, or not."""
        if status == "200":
            self._accepted()
            self.start()
            if not self.over:
                self._pull(0)  # the client has usually spoken already
            return
        text = f"http status: {status} {_STATUS_TEXT.get(status, '')}".rstrip()
        if status in RETRIABLE_STATUSES:
            self._failed(text, CONNECT)
        else:
            self.abort(text, CONNECT, fr.CANCEL)

    def on_reset(self, code: int) -> None:
        """Reset by the peer; a CONNECT it never looked at is sent again, once."""
        if self.opened:
            super().on_reset(code)
        elif code == fr.REFUSED_STREAM and not self._retried and not self.over:
            self._server.context.answers.discard(self)
            self._retried = True
            self.mux = None
            self._request_tunnel()
        else:
            self._failed(f"connection failed: stream reset (code {code})", CONNECT)

    def on_over(self) -> None:
        """The connection has ended."""
        if not self.opened:
            self._withdraw()
        self._server.outbound.pop(self, None)


class PlainConnection:
    """A captured connection that goes on without a tunnel."""

    def __init__(self, server: WorkloadServer, flow: Flow) -> None:
        self._server = server
        self._pipe = Pipe(server.context.loop, flow, self._ended)
        server.plain[self] = None

    def start(self, app: socket.SocketType, peer: socket.SocketType) -> None:
        """Copy between the application and the destination."""
        self._pipe.start(app, peer)

    def abort(self, error: str, flags: str = OK) -> None:
        """Close at once."""
        self._pipe.abort(error, flags)

    def _ended(self, _pipe: Pipe) -> None:
        self._server.plain.pop(self, None)
