"""A DNS server on given sockets: local answers at once, everything else forwarded (UDP and TCP).

What is forwarded goes as it came, under a random id and source port; no answer in time is
SERVFAIL. Queries under way and TCP clients are bounded.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from metalmesh.dns.message import (
    Answer,
    BadQueryError,
    ResponseCode,
    encode_answer,
    encode_error,
    parse_query,
)
from metalmesh.errors import NetworkError, ProtocolError
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from metalmesh.dns.message import Query

    #: a non-blocking socket to an upstream of this address; SOCK_DGRAM or SOCK_STREAM
    MakeSocket = Callable[[str, int], socket.socket]

PORT: Final = 53
#: datagrams taken per wake-up, so that other events get their turn
_BATCH: Final = 32
#: queries being forwarded at one time
_MAX_FORWARDS: Final = 256
_MAX_TCP_CLIENTS: Final = 64
_TCP_IDLE_SECONDS: Final = 5.0
UPSTREAM_SECONDS: Final = 2.0
_MAX_UPSTREAMS: Final = 3
_MAX_UDP_BYTES: Final = 65535
#: how often a resolv.conf is looked at, at most
_LOOK_SECONDS: Final = 1.0

log = Log("metalmesh.dns")


class Site(Protocol):
    """Whose server it is: answers, and hears what happened to each query."""

    def resolve(self, query: Query, peer: str) -> Answer | None:
        """An answer; None: another server knows."""

    def on_query(self, query: Query, protocol: str) -> None:
        """A query was read; ``protocol`` is ``udp`` or ``tcp``."""

    def on_result(self, result: str) -> None:
        """``answered``, ``forwarded``, ``failed``, ``malformed`` or ``overloaded``."""

    def on_upstream(self, query: Query, protocol: str, seconds: float, *, failed: bool) -> None:
        """An upstream was asked, and how long it took."""


class Upstreams:
    """Nameservers to forward to: fixed ones, else those of a resolv.conf as it is now."""

    def __init__(
        self, fixed: Sequence[str], resolv_conf: Path, excluded: Callable[[str], bool]
    ) -> None:
        self._fixed = list(fixed)
        self._path = resolv_conf
        self._excluded = excluded
        self._looked_at = -_LOOK_SECONDS
        self._version: tuple[int, int] = (0, 0)
        self._found: list[str] = []

    def addresses(self) -> list[str]:
        """At most three, in order."""
        if self._fixed:
            return self._fixed[:_MAX_UPSTREAMS]
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            self._look()
        return self._found[:_MAX_UPSTREAMS]

    def _look(self) -> None:
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_ino)
            if version == self._version:
                return
            lines = self._path.read_text().splitlines()
        except OSError as error:
            log.warning("no nameservers", {"path": str(self._path), "error": str(error)})
            return
        words = [line.split() for line in lines]
        names = [item[1] for item in words if len(item) > 1 and item[0] == "nameserver"]
        self._version = version
        self._found = [name for name in names if not self._excluded(name)]
        log.info("nameservers", {"upstreams": self._found, "path": str(self._path)})


class DnsServer:
    """Serves sockets for one site."""

    def __init__(self, site: Site, upstreams: Upstreams, make_socket: MakeSocket) -> None:
        self._site = site
        self._upstreams = upstreams
        self._make_socket = make_socket
        self._forwards: set[asyncio.Task[None]] = set()
        self._udp: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._clients: set[asyncio.Task[Any]] = set()

    async def listen(self, udp: Collection[socket.socket], tcp: Collection[socket.socket]) -> None:
        """Begin to serve bound sockets, which are ours from now on."""
        loop = asyncio.get_running_loop()
        for sock in udp:
            sock.settimeout(0)
            self._udp.append(sock)
            loop.add_reader(sock.fileno(), self._on_readable, sock)
        for sock in tcp:
            self._servers.append(await asyncio.start_server(self._serve_tcp, sock=sock))

    async def finish(self, seconds: float) -> None:
        """Take no more queries; let those under way end."""
        self.stop_reading()
        waiting = {*self._forwards, *self._clients}
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)

    def stop_reading(self) -> None:
        """Take no more queries."""
        for server in self._servers:
            server.close()
        for sock in self._udp:
            asyncio.get_running_loop().remove_reader(sock.fileno())

    def close(self) -> None:
        """End everything at once."""
        self.stop_reading()
        for sock in self._udp:
            sock.close()
        self._udp.clear()
        for task in {*self._forwards, *self._clients}:
            task.cancel()

    # --- UDP -------------------------------------------------------------------------------
    def _on_readable(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                data, peer = sock.recvfrom(_MAX_UDP_BYTES)
            except OSError:  # no more, or the echo of a client that is gone
                return
            self._on_datagram(sock, data, peer)

    def _on_datagram(self, sock: socket.socket, data: bytes, peer: Any) -> None:
        """Answer at once, or when an upstream has."""
        query, reply = self._local_answer(data, peer[0], "udp")
        if query is not None and reply is None:
            if len(self._forwards) < _MAX_FORWARDS:
                work = self._forward_udp(sock, query, data, peer)
                task = asyncio.get_running_loop().create_task(work)
                self._forwards.add(task)
                task.add_done_callback(self._forwards.discard)
                return
            reply = self._failure(query, "overloaded")
        _send(sock, reply, peer)

    async def _forward_udp(self, sock: socket.socket, query: Query, data: bytes, peer: Any) -> None:
        _send(sock, await self._forward(query, data, "udp"), peer)

    # --- TCP -------------------------------------------------------------------------------
    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= _MAX_TCP_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        peer = writer.get_extra_info("peername")[0]
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE_SECONDS):
                    (length,) = struct.unpack("!H", await reader.readexactly(2))
                    data = await reader.readexactly(length)
                query, reply = self._local_answer(data, peer, "tcp")
                if query is not None and reply is None:
                    reply = await self._forward(query, data, "tcp")
                if reply is None:
                    return
                writer.write(struct.pack("!H", len(reply)) + reply)
                async with asyncio.timeout(_TCP_IDLE_SECONDS):
                    await writer.drain()
        except (TimeoutError, OSError, EOFError):
            return  # the client is slow or done
        except asyncio.CancelledError:
            return  # closed; the end of a task that nobody awaits must not be an error
        finally:
            self._clients.discard(task)
            writer.close()

    # --- answers ---------------------------------------------------------------------------
    def _local_answer(
        self, data: bytes, peer: str, protocol: str
    ) -> tuple[Query | None, bytes | None]:
        """The query if it could be read, and the answer if it is ours to give."""
        try:
            query = parse_query(data)
        except BadQueryError as error:
            self._site.on_result("malformed")
            return None, encode_error(error.id, error.code)
        except ProtocolError:
            self._site.on_result("malformed")
            return None, None
        self._site.on_query(query, protocol)
        answer = self._site.resolve(query, peer)
        if answer is None:
            return query, None
        if answer.code is ResponseCode.SERVFAIL:
            return query, self._failure(query, "failed")
        self._site.on_result("answered")
        limit = query.udp_bytes if protocol == "udp" else _MAX_UDP_BYTES
        return query, encode_answer(query, answer, authoritative=True, max_bytes=limit)

    def _failure(self, query: Query, result: str) -> bytes:
        self._site.on_result(result)
        return encode_answer(query, Answer(ResponseCode.SERVFAIL), authoritative=False)

    # --- forwarding ------------------------------------------------------------------------
    async def _forward(self, query: Query, data: bytes, protocol: str) -> bytes:
        ask = ask_udp if protocol == "udp" else ask_tcp
        for upstream in self._upstreams.addresses():
            started = time.monotonic()
            reply = b""
            try:
                async with asyncio.timeout(UPSTREAM_SECONDS):
                    renamed = secrets.token_bytes(2) + data[2:]
                    reply = await ask(self._make_socket, upstream, renamed, query.question)
            except (TimeoutError, OSError, EOFError, NetworkError) as error:
                log.debug("upstream failed", {"upstream": upstream, "error": str(error)})
            seconds = time.monotonic() - started
            self._site.on_upstream(query, protocol, seconds, failed=not reply)
            if reply:
                self._site.on_result("forwarded")
                return data[:2] + reply[2:]
        return self._failure(query, "failed")


async def ask_udp(
    make_socket: MakeSocket, upstream: str, data: bytes, question: bytes, port: int = PORT
) -> bytes:
    """Ask once; a reply with another id or question is somebody else's and ignored."""
    loop = asyncio.get_running_loop()
    with make_socket(upstream, socket.SOCK_DGRAM) as sock:
        await loop.sock_connect(sock, (upstream, port))
        await loop.sock_sendall(sock, data)
        while True:
            reply = await loop.sock_recv(sock, _MAX_UDP_BYTES)
            if _belongs(reply, data, question):
                return reply


async def ask_tcp(
    make_socket: MakeSocket, upstream: str, data: bytes, question: bytes, port: int = PORT
) -> bytes:
    """Ask once, also for what is too long for UDP."""
    loop = asyncio.get_running_loop()
    with make_socket(upstream, socket.SOCK_STREAM) as sock:
        await loop.sock_connect(sock, (upstream, port))
        await loop.sock_sendall(sock, struct.pack("!H", len(data)) + data)
        (length,) = struct.unpack("!H", await _read_exactly(sock, 2))
        reply = await _read_exactly(sock, length)
    if not _belongs(reply, data, question):
        raise OSError("the answer belongs to another question")
    return reply


def plain_socket(upstream: str, kind: int) -> socket.socket:
    """A non-blocking socket of this process's own network."""
    family = socket.AF_INET6 if ":" in upstream else socket.AF_INET
    return socket.socket(family, kind | socket.SOCK_NONBLOCK)


def _send(sock: socket.socket, reply: bytes | None, peer: Any) -> None:
    """Answers are as unreliable as UDP: the client asks again."""
    if reply is not None:
        with suppress(OSError):
            sock.sendto(reply, peer)


async def _read_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < size:
        chunk = await loop.sock_recv(sock, size - len(received))
        if not chunk:
            raise EOFError("the upstream closed the connection")
        received += chunk
    return received


def _belongs(reply: bytes, asked: bytes, question: bytes) -> bool:
    echoed = reply[12 : 12 + len(question)]
    return reply[:2] == asked[:2] and echoed.lower() == question.lower()
