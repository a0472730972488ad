"""A small asyncio HTTP/1.1 server for admin, metrics and readiness ports.

It refuses what such a port does not need: bodies above 64 KiB, chunked requests, slow clients,
more than 64 connections at once. Handlers get a :class:`Request` and return a :class:`Response`.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import zlib
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from metalmesh.errors import NetworkError
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    Handler = Callable[["Request"], "Response | Awaitable[Response]"]

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 64
#: a client must send its next request, and take its answer, within this time
IDLE_TIMEOUT_SECONDS: Final = 30.0
#: answers below this size are not worth compressing
GZIP_MIN_BYTES: Final = 1024
_NO_SUCH_FAMILY: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_GZIP_WINDOW: Final = 31  # zlib: gzip container, 32 KiB window

log = Log("http")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request; header names are lower-case, a repeated query key keeps its last value."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


def text(body: str, status: int = 200) -> Response:
    """A plain-text answer."""
    return Response(status, body.encode())


def json_text(body: str, status: int = 200) -> Response:
    """An answer of JSON text."""
    return Response(status, body.encode(), "application/json")


class BadRequestError(Exception):
    """A request that gets an error status; the connection is closed afterwards."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class HttpServer:
    """Routes by (method, path); a known path with another method is 405, the rest 404."""

    def __init__(self) -> None:
        self._routes: dict[str, dict[str, Handler]] = {}
        self._prefixes: dict[str, Handler] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    def route(
        self,
        method: str,
        path: str,
        handler: Handler,
    ) -> None:
        """Answer ``method path`` with ``handler``."""
        self._routes.setdefault(path, {})[method] = handler

    def route_prefix(self, prefix: str, handler: Handler) -> None:
        """Answer GET of every path below ``prefix`` (which ends in ``/``)."""
        self._prefixes[prefix] = handler

    async def listen(self, addresses: Sequence[str], port: int) -> int:
        """Listen on every address; return the port (chosen by the kernel when 0).

        An address of a family this machine does not have is left out, unless it is the only one.
        """
        for address in addresses:
            try:
                sock = _bound_socket(address, port)
            except OSError as error:
                if error.errno in _NO_SUCH_FAMILY and self._servers:
                    continue
                raise NetworkError(
                    f"HTTP port {port} on {address}: {error.strerror}; is another instance running?"
                ) from error
            server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_HEAD_BYTES)
            self._servers.append(server)
            port = int(sock.getsockname()[1])
        return port

    async def close(self) -> None:
        """Stop listening and drop open connections."""
        for server in self._servers:
            server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                await _send(writer, text("too many connections\n", 503), keep=False, gzip=False)
                return
            while await self._serve_in_time(reader, writer):
                pass
        except (TimeoutError, asyncio.CancelledError, OSError, EOFError):
            return  # a slow or vanished client, or our own shutdown: nothing to answer
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_in_time(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        async with asyncio.timeout(IDLE_TIMEOUT_SECONDS):
            return await self._serve_one(reader, writer)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        try:
            request = await _read_request(reader)
        except BadRequestError as error:
            await _send(writer, text(f"{error}\n", error.status), keep=False, gzip=False)
            return False
        if request is None:
            return False
        response = await self._answer(request)
        keep = request.headers.get("connection", "").lower() != "close"
        gzip = "gzip" in request.headers.get("accept-encoding", "")
        await _send(writer, response, keep=keep, gzip=gzip, head=request.method == "HEAD")
        return keep

    async def _answer(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        handlers = self._routes.get(request.path)
        if handlers is None:
            for prefix, handler in self._prefixes.items():
                if request.path.startswith(prefix) and method == "GET":
                    handlers = {"GET": handler}
        if handlers is None:
            return text("Not Found\n", 404)
        if method not in handlers:
            allowed = {"allow": ", ".join(sorted(handlers))}
            return Response(405, b"Method Not Allowed\n", headers=allowed)
        try:
            result = handlers[method](request)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            log.exception(f"handler of {request.method} {request.path} failed", error)
            return text("Internal Server Error\n", 500)


def _bound_socket(address: str, port: int) -> socket.socket:
    """A socket bound to an address; asyncio's own way loses the errno when that fails."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    """Read one request; None when the client is done."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial.strip():
            raise BadRequestError(400, "request ends before its headers do") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequestError(431, f"headers exceed {MAX_HEAD_BYTES} bytes") from error
    start, *lines = head.decode("latin-1").split("\r\n")[:-2]
    parts = start.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise BadRequestError(400, f"request line {start!r} is not HTTP/1.1")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequestError(400, f"header line {line!r} is malformed")
        headers[name.lower()] = value.strip()
    if parts[2] == "HTTP/1.0":
        headers["connection"] = "close"
    target = urlsplit(parts[1])
    return Request(
        method=parts[0],
        path=target.path or "/",
        query=dict(parse_qsl(target.query, keep_blank_values=True)),
        headers=headers,
        body=await _read_body(reader, headers),
    )


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "transfer-encoding" in headers:
        raise BadRequestError(411, "chunked requests are not accepted; send content-length")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise BadRequestError(400, f"content-length {length!r} is not a number")
    if int(length) > MAX_BODY_BYTES:
        raise BadRequestError(413, f"body exceeds {MAX_BODY_BYTES} bytes")
    return await reader.readexactly(int(length))


async def _send(
    writer: asyncio.StreamWriter,
    response: Response,
    *,
    keep: bool,
    gzip: bool,
    head: bool = False,
) -> None:
    body = response.body
    headers = {"content-type": response.content_type, **response.headers}
    if gzip and len(body) >= GZIP_MIN_BYTES:
        packer = zlib.compressobj(wbits=_GZIP_WINDOW)
        body = packer.compress(body) + packer.flush()
        headers["content-encoding"] = "gzip"
    headers["content-length"] = str(len(body))
    headers["connection"] = "keep-alive" if keep else "close"
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head else body))
    await writer.drain()
