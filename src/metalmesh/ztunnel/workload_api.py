"""The SPIFFE Workload API: a workload's own certificate, key and roots, for its software.

Whoever connects is known by the network namespace of the socket it connected with, which the kernel
tells (``SO_NETNS_COOKIE`` of the accepted socket is that of its peer): no process id that could be
somebody else's by now, no path that somebody else may open. A process of a namespace that is not
served, the machine's own included, is refused. A key goes to the workload itself and nowhere else.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.errors import ConfigError
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from metalmesh.http.grpc_server import Call, GrpcServer
    from metalmesh.pki.svid import Svid
    from metalmesh.ztunnel.main import Ztunnel

SERVICE: Final = "/SpiffeWorkloadAPI/"
METHODS: Final = ("FetchX509SVID", "FetchX509Bundles")
#: proves that a request was not smuggled in by way of a browser or a proxy (SPIFFE Workload
#: Endpoint, section 5)
SECURITY_HEADER: Final = "workload.spiffe.io"
_SO_NETNS_COOKIE: Final = 71
_SOCKET_MODE: Final = 0o666
_DIRECTORY_MODE: Final = 0o755
#: connections in all, and of one workload; those of nobody count as one's
MAX_CONNECTIONS: Final = 1024
MAX_CONNECTIONS_EACH: Final = 64
_DRAIN_SECONDS: Final = 60.0
_READ_BYTES: Final = 16 * 1024
#: a client that reads nothing holds at most this much
_MAX_BUFFERED_BYTES: Final = 256 * 1024

audit = Log("audit")
log = Log("metalmesh.ztunnel.workload_api")


def netns_cookie(sock: socket.SocketType) -> int:
    """What a network namespace is known by until the next boot, from any socket of it."""
    data = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    found: int = struct.unpack("=Q", data)[0]
    return found


class WorkloadApi:
    """The socket and everybody connected to it."""

    def __init__(self, ztunnel: Ztunnel) -> None:
        self._ztunnel = ztunnel
        self._path = Path(ztunnel.config.workload_api_socket)
        self._server: asyncio.AbstractServer | None = None
        with socket.socket() as own:
            self._own_cookie = netns_cookie(own)
        self._sessions: set[_Session] = set()
        self.requests = ztunnel.registry.counter(
            "metalmesh_ztunnel_workload_api_requests_total",
            "Calls of the SPIFFE Workload API by outcome",
            ("method", "result"),
        )
        ztunnel.certificates.on_issued = self._refresh

    async def listen(self) -> None:
        """Open the socket; anybody may connect, and is told what is theirs."""
        try:
            self._path.unlink(missing_ok=True)
            self._path.parent.chmod(_DIRECTORY_MODE)
            self._server = await asyncio.start_unix_server(self._accept, self._path)
            self._path.chmod(_SOCKET_MODE)
        except OSError as error:
            raise ConfigError(
                f"workload_api_socket: {self._path} cannot be used: {error.strerror}; its "
                "directory must be ours alone"
            ) from error

    async def close(self) -> None:
        """Stop; clients connect again to whoever comes after us."""
        if self._server is not None:
            self._server.close()
        for session in tuple(self._sessions):
            session.writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = _Session(self, writer)
        same = sum(other.group == session.group for other in self._sessions)
        if len(self._sessions) >= MAX_CONNECTIONS or same >= MAX_CONNECTIONS_EACH:
            writer.close()
            return
        self._sessions.add(session)
        try:
            while (data := await reader.read(_READ_BYTES)) and not session.receive(data):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    await writer.drain()
        except (OSError, TimeoutError):
            pass  # the client has gone, or reads nothing
        finally:
            self._sessions.discard(session)
            writer.close()

    def _refresh(self, identity: str) -> None:
        for session in tuple(self._sessions):
            session.refresh(identity)

    def identity_of(self, cookie: int) -> str:
        """The identity of the workload whose namespace this is; "" when there is none."""
        if cookie == self._own_cookie:
            return ""  # everything on the machine is here, whoever it belongs to
        for local in self._ztunnel.mesh.locals.values():
            if netns_cookie(next(iter(local.sockets.values()))) == cookie:
                return local.view.identity
        return ""

    def svid_of(self, identity: str) -> Svid | None:
        """The valid certificate of an identity."""
        return self._ztunnel.certificates.current(identity)


class _Session:
    """One connection."""

    def __init__(self, api: WorkloadApi, writer: asyncio.StreamWriter) -> None:
        from metalmesh.http.grpc_server import GrpcServer  # only where the API is used

        sock = writer.get_extra_info("socket")
        self._api = api
        self.writer = writer
        self.cookie = netns_cookie(sock)
        self.group = self.cookie if api.identity_of(self.cookie) else 0
        #: for the log only; where the decision comes from see above
        size = struct.calcsize("3i")
        self._credentials = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        self._grpc: GrpcServer = GrpcServer()
        #: open streams: method and the identity they are for
        self._open: dict[int, tuple[str, str]] = {}

    def receive(self, data: bytes) -> bool:
        """Bytes of the client; true when the connection is over."""
        from metalmesh.http.grpc_server import Call

        for event in self._grpc.receive(data):
            if isinstance(event, Call):
                self._call(event)
            else:
                self._open.pop(event.stream_id, None)
        self._flush()
        return self._grpc.closed

    def refresh(self, identity: str) -> None:
        """A certificate was issued: push it to those who wait for it."""
        for stream_id, (method, wanted) in tuple(self._open.items()):
            if wanted == identity:
                self._answer(stream_id, method, identity)
        self._flush()

    def _flush(self) -> None:
        data = self._grpc.bytes_to_send()
        if data:
            self.writer.write(data)
        if self.writer.transport.get_write_buffer_size() > _MAX_BUFFERED_BYTES:
            self.writer.transport.abort()

    def _call(self, call: Call) -> None:
        from metalmesh.http import grpc_server as grpc

        method = call.path.removeprefix(SERVICE)
        if call.metadata.get(SECURITY_HEADER) != "true":
            self._refuse(call, grpc.INVALID_ARGUMENT, f"metadata {SECURITY_HEADER} is not true")
        elif method not in METHODS:
            self._refuse(call, grpc.UNIMPLEMENTED, "X.509 certificates only")
        elif not (identity := self._api.identity_of(self.cookie)):
            self._refuse(call, grpc.PERMISSION_DENIED, "no identity issued")
        else:
            audit.info("workload API call", self._fields(method, identity))
            self._api.requests.inc((method, "granted"))
            self._open[call.stream_id] = (method, identity)
            self._answer(call.stream_id, method, identity)

    def _refuse(self, call: Call, code: int, text: str) -> None:
        self._grpc.finish(call.stream_id, code, text)
        method = call.path.removeprefix(SERVICE)[:64]
        self._api.requests.inc((method if method in METHODS else "other", "refused"))
        audit.warning("workload API call refused", {**self._fields(method, ""), "reason": text})

    def _fields(self, method: str, identity: str) -> dict[str, object]:
        pid, uid, _ = self._credentials
        fields: dict[str, object] = {"method": method, "pid": pid, "uid": uid}
        return {**fields, "identity": identity} if identity else fields

    def _answer(self, stream_id: int, method: str, identity: str) -> None:
        """Send what is there; without a certificate the stream waits for it."""
        from metalmesh.http.grpc_server import PERMISSION_DENIED

        if self._api.identity_of(self.cookie) != identity:
            self._open.pop(stream_id, None)
            self._grpc.finish(stream_id, PERMISSION_DENIED, "no identity issued")
            return
        svid = self._api.svid_of(identity)
        if svid is not None:
            encode = encode_svid if method == "FetchX509SVID" else encode_bundles
            self._grpc.send(stream_id, encode(svid))


def encode_svid(svid: Svid) -> bytes:
    """An ``X509SVIDResponse``."""
    from metalmesh.pki.svid import pem_to_der
    from metalmesh.proto import workload_api_pb2 as pb

    message = pb.X509SVID(
        spiffe_id=svid.identity,
        x509_svid=pem_to_der(svid.chain_pem),
        x509_svid_key=pem_to_der(svid.key_pem),
        bundle=pem_to_der(svid.roots_pem),
    )
    return pb.X509SVIDResponse(svids=[message]).SerializeToString()


def encode_bundles(svid: Svid) -> bytes:
    """An ``X509BundlesResponse``: the roots of our own trust domain."""
    from metalmesh.model.identity import parse_spiffe_id
    from metalmesh.pki.svid import pem_to_der
    from metalmesh.proto import workload_api_pb2 as pb

    domain = f"spiffe://{parse_spiffe_id(svid.identity).trust_domain}"
    return pb.X509BundlesResponse(bundles={domain: pem_to_der(svid.roots_pem)}).SerializeToString()
