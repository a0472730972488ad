"""The node's DNS server: UDP and TCP port 53 of ``dns_address`` (:mod:`metalmesh.dns`).

A client's namespace follows from its source address. What is no service is forwarded as it came,
under a random id and source port; no answer in time is SERVFAIL. Everything is bounded.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import struct
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from metalmesh.dns.message import (
    Answer,
    BadQueryError,
    ResponseCode,
    encode_answer,
    encode_error,
    parse_query,
)
from metalmesh.dns.resolve import ServiceNames
from metalmesh.errors import ProtocolError
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from metalmesh.dns.message import Query
    from metalmesh.model.service import Service
    from metalmesh.model.workload import IPAddress
    from metalmesh.node.config import NodeConfig
    from metalmesh.node.enrolment import Enrolment
    from metalmesh.node.mesh import NodeMesh
    from metalmesh.node.metrics import NodeMetrics

_PORT: Final = 53
#: queries being forwarded at one time
_MAX_FORWARDS: Final = 256
_MAX_TCP_CLIENTS: Final = 64
_TCP_IDLE_SECONDS: Final = 5.0
_UPSTREAM_SECONDS: Final = 2.0
_MAX_UPSTREAMS: Final = 3
_RETRY_SECONDS: Final = 5.0
_MAX_UDP_BYTES: Final = 65535
_FALLBACK_RESOLV_CONF: Final = Path("/etc/resolv.conf")

log = Log("metalmesh.node.dns")


class DnsShell:
    """Listens, answers from the mesh's services, forwards the rest."""

    def __init__(
        self, config: NodeConfig, mesh: NodeMesh, enrolment: Enrolment, metrics: NodeMetrics
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._enrolment = enrolment
        self._metrics = metrics
        self._names = ServiceNames((), config.cluster_domain)
        self._upstreams: list[str] = []
        self._forwards: set[asyncio.Task[None]] = set()
        self._tcp_clients = 0

    def services_changed(self) -> None:
        """Index the services anew."""
        services = self._mesh.state.services.values()
        self._names = ServiceNames(services, self._config.cluster_domain)

    async def run(self) -> None:
        """Serve until cancelled; a port that is taken is tried again."""
        self.services_changed()
        self._upstreams = find_upstreams(self._config)
        while True:
            try:
                await self._serve()
            except OSError as error:
                log.error(
                    "DNS cannot listen",
                    {"address": str(self._config.dns_address), "error": str(error)},
                )
                await asyncio.sleep(_RETRY_SECONDS)

    async def _serve(self) -> None:
        address = str(self._config.dns_address)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _UdpServer(self), local_addr=(address, _PORT)
        )
        try:
            server = await asyncio.start_server(self._serve_tcp, address, _PORT)
            log.info("listening", {"address": address, "upstreams": self._upstreams})
            async with server:
                await server.serve_forever()
        finally:
            transport.close()
            for task in self._forwards:
                task.cancel()

    # --- UDP -------------------------------------------------------------------------------
    def datagram(self, transport: asyncio.DatagramTransport, data: bytes, peer: Any) -> None:
        """Answer one datagram, at once or when an upstream has."""
        query, reply = self._local_answer(data, peer[0], over_udp=True)
        if reply is not None:
            transport.sendto(reply, peer)
        elif query is not None:
            if len(self._forwards) >= _MAX_FORWARDS:
                transport.sendto(self._failure(query, "overloaded"), peer)
                return
            task = asyncio.get_running_loop().create_task(
                self._forward_udp(transport, query, data, peer)
            )
            self._forwards.add(task)
            task.add_done_callback(self._forwards.discard)

    async def _forward_udp(
        self, transport: asyncio.DatagramTransport, query: Query, data: bytes, peer: Any
    ) -> None:
        transport.sendto(await self._forward(query, data, over_udp=True), peer)

    # --- TCP -------------------------------------------------------------------------------
    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tcp_clients >= _MAX_TCP_CLIENTS:
            writer.close()
            return
        self._tcp_clients += 1
        peer = writer.get_extra_info("peername")[0]
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE_SECONDS):
                    (length,) = struct.unpack("!H", await reader.readexactly(2))
                    data = await reader.readexactly(length)
                query, reply = self._local_answer(data, peer, over_udp=False)
                if query is not None and reply is None:
                    reply = await self._forward(query, data, over_udp=False)
                if reply is None:
                    return
                writer.write(struct.pack("!H", len(reply)) + reply)
                async with asyncio.timeout(_TCP_IDLE_SECONDS):
                    await writer.drain()
        except (TimeoutError, OSError, EOFError):
            return  # the client is slow or done
        finally:
            self._tcp_clients -= 1
            writer.close()

    # --- answers ---------------------------------------------------------------------------
    def _local_answer(
        self, data: bytes, peer: str, *, over_udp: bool
    ) -> tuple[Query | None, bytes | None]:
        """The query if it could be read, and the answer if it is ours to give."""
        try:
            query = parse_query(data)
        except BadQueryError as error:
            self._metrics.dns_queries.inc(("malformed",))
            return None, encode_error(error.id, error.code)
        except ProtocolError:
            self._metrics.dns_queries.inc(("malformed",))
            return None, None
        namespace = self._enrolment.namespace_of(ip_address(peer))
        answer = self._names.answer(query, namespace, self._endpoints, random.shuffle)
        if answer is None:
            return query, None
        self._metrics.dns_queries.inc(("answered",))
        limit = query.udp_bytes if over_udp else _MAX_UDP_BYTES
        log.debug(
            "query", {"src.namespace": namespace, "query": query.name, "result": answer.code.name}
        )
        return query, encode_answer(query, answer, authoritative=True, max_bytes=limit)

    def _endpoints(self, service: Service) -> Iterator[Sequence[IPAddress]]:
        state = self._mesh.state
        for uid in state.endpoints.get(service.key, {}):
            if state.workloads[uid].healthy:
                yield state.workloads[uid].addresses

    def _failure(self, query: Query, result: str) -> bytes:
        self._metrics.dns_queries.inc((result,))
        return encode_answer(query, Answer(ResponseCode.SERVFAIL), authoritative=False)

    # --- forwarding ------------------------------------------------------------------------
    async def _forward(self, query: Query, data: bytes, *, over_udp: bool) -> bytes:
        ask = _ask_udp if over_udp else _ask_tcp
        for upstream in self._upstreams[:_MAX_UPSTREAMS]:
            own_id = secrets.token_bytes(2)
            try:
                async with asyncio.timeout(_UPSTREAM_SECONDS):
                    reply = await ask(upstream, own_id + data[2:], query.question)
            except (TimeoutError, OSError, EOFError) as error:
                log.debug("upstream failed", {"upstream": upstream, "error": str(error)})
                continue
            self._metrics.dns_queries.inc(("forwarded",))
            return data[:2] + reply[2:]
        return self._failure(query, "failed")


class _UdpServer(asyncio.DatagramProtocol):
    def __init__(self, shell: DnsShell) -> None:
        self._shell = shell
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own class of it is not derived from the public one
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self._transport is not None
        self._shell.datagram(self._transport, data, addr)


async def _ask_udp(upstream: str, data: bytes, question: bytes) -> bytes:
    """Ask once; a reply with another id or question is somebody else's and ignored."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in upstream else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        await loop.sock_connect(sock, (upstream, _PORT))
        await loop.sock_sendall(sock, data)
        while True:
            reply = await loop.sock_recv(sock, _MAX_UDP_BYTES)
            if _belongs(reply, data, question):
                return reply


async def _ask_tcp(upstream: str, data: bytes, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(upstream, _PORT)
    try:
        writer.write(struct.pack("!H", len(data)) + data)
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        reply = await reader.readexactly(length)
    finally:
        writer.close()
    if not _belongs(reply, data, question):
        raise OSError("the answer belongs to another question")
    return reply


def _belongs(reply: bytes, asked: bytes, question: bytes) -> bool:
    echoed = reply[12 : 12 + len(question)]
    return reply[:2] == asked[:2] and echoed.lower() == question.lower()


def find_upstreams(config: NodeConfig) -> list[str]:
    """Nameservers to forward to: configured ones, else those of a resolv.conf."""
    if config.dns_upstreams:
        return list(config.dns_upstreams)
    path = config.resolv_conf
    if not path.exists():
        path = _FALLBACK_RESOLV_CONF
    own = str(config.dns_address)
    return [item for item in _nameservers(path) if item != own]


def _nameservers(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        log.warning("no nameservers to forward to", {"path": str(path), "error": str(error)})
        return []
    words = [line.split() for line in lines]
    return [item[1] for item in words if len(item) > 1 and item[0] == "nameserver"]
