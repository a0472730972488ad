"""Inbound HBONE (port 15008): mutual TLS, CONNECT to one of our own addresses, and policy.

Never an open proxy: the authority must be an address of the workload the listener belongs to
(istio-facts 2.2). The application sees the client's own address.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from metalmesh.constants import ILLEGAL_PORTS, SERVER_MAX_STREAMS
from metalmesh.errors import PolicyDeniedError
from metalmesh.hbone import baggage, headers
from metalmesh.hbone import frames as fr
from metalmesh.policy.l4 import Connection
from metalmesh.ztunnel.worker.certificates import peer_identities
from metalmesh.ztunnel.worker.dial import Dial
from metalmesh.ztunnel.worker.flow import CONNECT, INBOUND, OK, Flow
from metalmesh.ztunnel.worker.metrics import Party
from metalmesh.ztunnel.worker.tls import Loss, TlsConnection, TlsFailedError
from metalmesh.ztunnel.worker.tunnel import Tunnel
from metalmesh.ztunnel.worker.workloads import MAX_WAITING

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from metalmesh.model.identity import SpiffeId
    from metalmesh.ztunnel.messages import Labels
    from metalmesh.ztunnel.worker.certificates import Credentials
    from metalmesh.ztunnel.worker.server import WorkloadServer

_MAX_SUBJECTS: Final = 64
SERVER_LIMITS: Final = fr.Limits(max_streams=SERVER_MAX_STREAMS)


class RefusedError(Exception):
    """A CONNECT that cannot be carried out, and the status that says so."""

    def __init__(self, status: str, message: str) -> None:
        self.status = status
        super().__init__(message)


class InboundConnection(TlsConnection):
    """The server's end of an HBONE connection."""

    __slots__ = (
        "_credentials",
        "_established",
        "_parties",
        "_server",
        "_source_ip",
        "_subjects",
        "client_ip",
        "client_port",
        "identity",
        "retiring",
    )

    def __init__(self, server: WorkloadServer, sock: socket.SocketType, ip: str, port: int) -> None:
        super().__init__(server.context.loop, sock, SERVER_LIMITS, client=False)
        self._server = server
        self.client_ip = ip
        self.client_port = port
        self._source_ip = ip_address(ip)
        self.identity: SpiffeId | None = None
        self.retiring = False
        #: the client's SETTINGS have come: both handshakes are over
        self._established = False
        self._credentials: Credentials | None = None
        self._subjects: dict[str, Connection] = {}
        #: source labels by baggage header, for the few that one peer sends
        self._parties: dict[str, Party] = {}

    def begin(self) -> None:
        """Wait for the workload's certificate if need be, then for the client's hello."""
        context = self._server.context
        context.handshakes.add(self)
        context.sources.lookup(self.client_ip, lambda _labels: None)  # have it when needed
        self.identify()

    def identify(self) -> None:
        """Take the workload's certificate, when it is known who the workload is."""
        certificates, identity = self._server.context.certificates, self._server.workload.identity
        if self.closed:
            return
        if identity is None:
            self._server.unidentified[self] = None
            return
        credentials = certificates.get(str(identity))
        if credentials is not None:
            self._certified(credentials, "")
        else:
            certificates.wait(str(identity), self._certified)

    def _certified(self, credentials: Credentials | None, error: str) -> None:
        if self.closed:
            return
        if credentials is None:
            self.lose(f"certificate unavailable: {error}")
            return
        self._credentials = credentials
        self.secure(credentials.server)

    def expire(self) -> None:
        """The client stalls in the handshake, of TLS or of HTTP/2."""
        if self._server.workload.identity is None:
            self.lose(self._server.workload.unknown_error)
        elif self.handshaking:
            self.lose("tls handshake error: timed out")
        else:
            self.lose("http2 handshake failed: timed out")

    def on_secured(self) -> None:
        """The client must have an identity of our own trust domain or of an alias of it."""
        assert self._credentials is not None
        ours = self._credentials.identity.trust_domain
        aliases = self._server.context.trust_domains
        found = peer_identities(self.tls)
        self.identity = next(
            (item for item in found if item.trust_domain == ours or item.trust_domain in aliases),
            None,
        )
        if self.identity is None:
            raise TlsFailedError(
                "identity verification error: peer did not present the expected trustdomain "
                f"({ours}), got {', '.join(map(str, found)) or 'none'}",
                Loss.IDENTITY,
            )
        self._server.context.revoked.check(self.tls, "destination")

    def on_settings(self) -> None:
        """The client speaks HTTP/2."""
        self._server.context.handshakes.discard(self)
        self._established = True
        if self.retiring:
            self.drain()

    # --- requests
    def on_request(self, stream_id: int, fields: dict[str, str], ended: bool) -> None:
        """Answer a request: only a CONNECT to one of our own addresses gets further."""
        workload = self._server.workload
        source = headers.format_authority(self.client_ip, self.client_port)
        flow = Flow(self._server.context.recorder, INBOUND, workload.uid, source)
        flow.dst_addr = self._server.hbone_address(self._sock)
        flow.mutual_tls = True
        try:
            flow.hbone_addr = headers.check_connect(fields)
            subject = self._subjects.get(flow.hbone_addr) or self._subject(flow.hbone_addr)
        except headers.MalformedError as error:
            self._reject(stream_id, "400", flow, str(error))
        except RefusedError as refused:
            self._reject(stream_id, refused.status, flow, str(refused))
        else:
            flow.original_dst = flow.hbone_addr
            tunnel = InboundTunnel(self._server, flow, subject)
            self.adopt(tunnel, stream_id, ended=ended)
            tunnel.begin(self, fields.get("baggage", ""))

    def _subject(self, authority: str) -> Connection:
        """What policies decide about an authority; remembered, for peers ask for few often."""
        workload = self._server.workload
        address, port = headers.parse_authority(authority)
        if isinstance(address, str):
            raise RefusedError("503", f"unknown hostname: {address}")
        if str(address) not in workload.addresses:
            own = ", ".join(sorted(workload.addresses))
            raise RefusedError("400", f"ip mismatch: {address} != {own}")
        if port in ILLEGAL_PORTS:
            raise RefusedError("503", f"port {port} belongs to the proxy itself")
        if len(self._subjects) >= _MAX_SUBJECTS:
            self._subjects.clear()
        subject = Connection(self._source_ip, address, port, self.identity)
        self._subjects[authority] = subject
        return subject

    def forget_subjects(self) -> None:
        """The workload's addresses have changed."""
        self._subjects.clear()

    def _reject(self, stream_id: int, status: str, flow: Flow, error: str) -> None:
        self.charge_flood(1, "rejected CONNECT")
        self.reject(stream_id, status)
        flow.finish(error, CONNECT)

    def source_party(self, header: str, labels: Labels | None) -> Party:
        """Who the client is: its baggage, corrected by what we know, and its certificate."""
        party = self._parties.get(header)
        if party is None or labels is None:
            merged = baggage.parse_baggage(header)
            merged.update({key: value for key, value in (labels or {}).items() if value})
            merged["principal"] = str(self.identity)
            party = Party(merged)
            if labels is not None and len(self._parties) < 8:
                self._parties[header] = party
        return party

    # --- the end
    def on_idle(self) -> None:
        """The last stream has ended."""
        if self.retiring and self.draining:
            self._loop.call_later(0, self._finish_if_idle)

    def _finish_if_idle(self) -> None:
        if not self.streams:
            self.finish()

    def retire(self) -> None:
        """Graceful end: GOAWAY, then streams finish, then close.

        A client in its handshake has requests waiting for it; it hears of the end afterwards.
        """
        self.retiring = True
        if self._established:
            self.drain()

    def on_lost(self, error: str, loss: Loss) -> None:
        """Early failures and broken protocols get their own line; streams have told theirs."""
        self._server.context.handshakes.discard(self)
        self._server.inbound.pop(self, None)
        self._server.unidentified.pop(self, None)
        if error and (loss is not Loss.ENDED or not self._last_id):
            source = headers.format_authority(self.client_ip, self.client_port)
            flow = Flow(self._server.context.recorder, INBOUND, "", source)
            flow.dst_addr = self._server.hbone_address(None)
            flow.finish(error, OK)


class InboundTunnel(Tunnel):
    """One CONNECT to a local application."""

    __slots__ = ("_connection", "_dial", "_server", "subject")

    #: policies on inner ports are ours to enforce
    tunneled = True

    def __init__(self, server: WorkloadServer, flow: Flow, subject: Connection) -> None:
        super().__init__(server.context.loop, flow)
        self._server = server
        self._connection: InboundConnection | None = None
        self._dial: Dial | None = None
        self.subject = subject

    def begin(self, connection: InboundConnection, baggage_header: str) -> None:
        """Label the source, then have the policies decide."""
        self._connection = connection
        self.flow.destination = self._server.workload.party
        self._server.context.sources.lookup(
            connection.client_ip, lambda labels: self._labelled(baggage_header, labels)
        )

    def _labelled(self, baggage_header: str, labels: Labels | None) -> None:
        if self.over or self._connection is None:
            return
        workload, flow = self._server.workload, self.flow
        flow.source = self._connection.source_party(baggage_header, labels)
        flow.open()
        workload.inbound[self] = None  # before the first check, so that no change is missed
        if workload.decidable:
            self.admit()
        elif len(workload.undecided) >= MAX_WAITING:
            self._deny("503", workload.unknown_error, CONNECT)
        else:
            workload.undecided[self] = None
            self._server.context.undecided.add(self)

    def expire(self) -> None:
        """The policies did not arrive: nothing is let through on a guess."""
        workload = self._server.workload
        workload.undecided.pop(self, None)
        if not self.over:
            status, error, flags = workload.undecided_verdict()
            self._deny(status, error, flags)

    def admit(self) -> None:
        """Everything is there: decide, and connect to the application."""
        if self.over:
            return
        self._server.context.undecided.discard(self)
        workload, subject = self._server.workload, self.subject
        try:
            workload.judge(subject, tunneled=True)
        except PolicyDeniedError as denied:
            self._deny("401", str(denied.args[0]), denied.args[1])
            return
        self._dial = Dial(self._server.context, self._connected)
        self._dial.start(
            workload.netns_fd, subject.destination, subject.destination_port, subject.source
        )

    def _deny(self, status: str, error: str, flags: str) -> None:
        if self._connection is not None:
            self._connection.reject(self.stream_id, status)
        self.terminate(error, flags)

    def _connected(self, sock: socket.SocketType | None, error: str) -> None:
        self._dial = None
        if sock is None:
            self._deny("503", error, CONNECT)
            return
        assert self._connection is not None
        self.attach(sock)
        self._connection.accept(self, self._server.accept_block)
        self.start()

    def refuse(self, error: str, flags: str) -> None:
        """The policies have changed."""
        if self.opened:
            self.abort(error, flags, fr.CANCEL)
        else:
            self._deny("401", error, flags)

    def on_response(self, status: str, _headers: Mapping[str, str]) -> None:
        """Servers get no answers."""
        raise AssertionError(f"a server got the answer {status}")

    def on_over(self) -> None:
        """The tunnel has ended."""
        workload = self._server.workload
        workload.inbound.pop(self, None)
        if workload.undecided.pop(self, 0) is None:
            self._server.context.undecided.discard(self)
        if self._dial is not None:
            self._dial.cancel()
        self._connection = None
