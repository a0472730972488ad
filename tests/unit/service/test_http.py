"""The small HTTP server, over real loopback sockets."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable

import pytest

from metalmesh.errors import NetworkError
from metalmesh.service.http import HttpServer, Request, Response, text


def answer(request: Request) -> Response:
    return text(f"{request.method} {request.path} {dict(request.query)} {request.body!r}")


async def slow_answer(request: Request) -> Response:
    await asyncio.sleep(0)
    return text("x" * 5000)


def broken(request: Request) -> Response:
    raise KeyError("oops")


def talk(*requests: bytes, close: bool = True) -> bytes:
    """Send raw requests over one connection; return everything that comes back."""

    async def conversation() -> bytes:
        server = HttpServer()
        server.route("GET", "/get", answer)
        server.route("POST", "/post", answer)
        server.route("GET", "/slow", slow_answer)
        server.route("GET", "/broken", broken)
        server.route_prefix("/below/", answer)
        port = await server.listen(["127.0.0.1"], 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in requests:
            writer.write(request)
        if close:
            writer.write_eof()
        data = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await server.close()
        return data

    return asyncio.run(conversation())


def test_routes_by_method_and_path() -> None:
    data = talk(b"GET /get?a=1&b=&a=2 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert data.endswith(b"GET /get {'a': '2', 'b': ''} b''")


def test_connection_is_kept_for_the_next_request() -> None:
    one = b"POST /post HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"
    data = talk(one, b"GET /below/x HTTP/1.1\r\n\r\n")
    assert data.count(b"HTTP/1.1 200") == 2
    assert b"b'abc'" in data
    assert data.endswith(b"GET /below/x {} b''")


@pytest.mark.parametrize(
    "request_bytes",
    [b"GET /get HTTP/1.1\r\nconnection: close\r\n\r\n", b"GET /get HTTP/1.0\r\n\r\n"],
)
def test_connection_ends_when_asked(request_bytes: bytes) -> None:
    data = talk(request_bytes, request_bytes, close=False)
    assert data.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in data


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /none HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /below/x HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /get HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500 Internal Server Error"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"GET / SPDY/3\r\n\r\n", b"400 Bad Request"),
        (b"GET /get HTTP/1.1\r\nbroken\r\n\r\n", b"400 Bad Request"),
        (b"GET /get HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"400 Bad Request"),
        (b"GET /get HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", b"413 "),
        (b"GET /get HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"411 Length Required"),
        (b"GET /get HTTP/1.1\r\nx: " + b"y" * 20000 + b"\r\n\r\n", b"431 "),
        (b"GET /get HTTP/1.1\r\n", b"400 Bad Request"),
    ],
)
def test_bad_requests_get_their_status(request_bytes: bytes, status: bytes) -> None:
    assert talk(request_bytes).startswith(b"HTTP/1.1 " + status)


def test_long_answers_are_compressed_when_accepted() -> None:
    data = talk(b"GET /slow HTTP/1.1\r\naccept-encoding: gzip\r\n\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"content-encoding: gzip" in head
    assert gzip.decompress(body) == b"x" * 5000


def test_head_has_no_body() -> None:
    data = talk(b"HEAD /slow HTTP/1.1\r\n\r\n")
    assert data.endswith(b"\r\n\r\n")
    assert b"content-length: 5000" in data


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def test_missing_address_family_is_left_out() -> None:
    """A machine without IPv6 still gets its ports; a wrong address is still an error."""

    async def work() -> None:
        server = HttpServer()
        port = await server.listen(["127.0.0.1", "192.0.2.1"], 0)
        assert port > 0
        await server.close()
        with pytest.raises(NetworkError, match=r"port 0 on 192\.0\.2\.1: Cannot assign"):
            await HttpServer().listen(["192.0.2.1"], 0)

    run(work)
