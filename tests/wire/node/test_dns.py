"""Forwarding of the node's DNS server to a nameserver of the test."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.support.mesh_node import DNS_ADDRESS, MeshNode, mesh_node
from tests.support.waits import WAITS, wait_until

UPSTREAM = "198.18.0.2"
QUERY = struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0) + b"\7Example\3com\0\0\1\0\1"
ANSWER = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1"


@contextlib.contextmanager
def nameserver(node: MeshNode, *, lie: bool = False) -> Iterator[list[bytes]]:
    """Answer over UDP; a liar sends wrong ids and questions first."""
    seen: list[bytes] = []
    server = node.outside.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.bind((UPSTREAM, 53))

    def loop() -> None:
        while True:
            query, peer = server.recvfrom(1024)
            if not query:
                return
            seen.append(query)
            good = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + ANSWER
            if lie:
                server.sendto(bytes([query[0] ^ 1]) + good[1:], peer)
                server.sendto(good.replace(b"Example", b"Exbmple"), peer)
            server.sendto(good, peer)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        node.outside.do(lambda: _send_nothing())
        thread.join(5)
        server.close()


def _send_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (UPSTREAM, 53))


@pytest.fixture(scope="module")
def node():
    with mesh_node(dns_upstreams=[UPSTREAM]) as made:
        made.start_agent()
        wait_until(lambda: "listening" in made.log(), WAITS["service"])
        yield made


def ask(node: MeshNode, query: bytes = QUERY, *, tcp: bool = False) -> bytes:
    def exchange() -> bytes:
        with socket.socket(
            socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        ) as sock:
            sock.settimeout(8)
            sock.connect((DNS_ADDRESS, 53))
            sock.sendall(struct.pack("!H", len(query)) + query if tcp else query)
            return sock.recv(4096)[2 if tcp else 0 :]

    return node.netns.do(exchange)


@pytest.mark.parametrize("lie", [False, True], ids=["honest", "beside a liar"])
def test_foreign_name_is_forwarded_under_an_id_of_our_own(node, lie):
    with nameserver(node, lie=lie) as seen:
        reply = ask(node)
    assert reply == QUERY[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + QUERY[12:] + ANSWER
    assert seen[0][2:] == QUERY[2:]
    assert seen[0][:2] != QUERY[:2]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_silent_upstream_is_a_server_failure(node, tcp):
    reply = ask(node, tcp=tcp)
    assert reply[:2] == QUERY[:2]
    assert reply[3] & 0xF == 2


def test_garbage_gets_an_error_and_the_server_lives_on(node):
    assert ask(node, b"\x12\x34" + b"\0" * 10)[3] & 0xF == 1
    assert ask(node, b"\x12\x34\x28" + b"\0" * 9)[3] & 0xF == 4
    with nameserver(node):
        assert ask(node)[3] & 0xF == 0
    assert node.metric('metalmesh_node_dns_queries_total{result="malformed"}') >= 2
