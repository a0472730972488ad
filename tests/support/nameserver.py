"""A nameserver that answers from a table, over UDP and TCP."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address

from metalmesh.dns.message import encode_name, parse_query
from tests.support.netns import Netns

Zone = dict[tuple[str, int], list[str]]
A, AAAA = 1, 28


class Nameserver:
    """Answers from a table over UDP; ``long`` names over TCP only."""

    def __init__(self, zone: Zone, ttl: int, port: int) -> None:
        self.zone, self.ttl = zone, ttl
        self.code = 0
        self.asked: list[str] = []
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", port))
        self.port = self.udp.getsockname()[1]
        self.tcp = socket.create_server(("127.0.0.1", self.port))

    def close(self) -> None:
        """End both threads."""
        with contextlib.suppress(OSError):  # not connected, yet it wakes who reads
            self.udp.shutdown(socket.SHUT_RDWR)
        self.tcp.shutdown(socket.SHUT_RDWR)

    def answer(self, data: bytes, *, over_udp: bool) -> bytes:
        """The response to a query."""
        query = parse_query(data)
        self.asked.append(query.name)
        found = [ip_address(text) for text in self.zone.get((query.name, query.type), [])]
        flags = 0x8180 | self.code
        if over_udp and query.name.startswith("long"):
            flags, found = flags | 0x0200, []
        records = b"".join(
            encode_name(query.name)
            + struct.pack("!HHIH", query.type, 1, self.ttl, len(address.packed))
            + address.packed
            for address in found
        )
        head = struct.pack("!6H", query.id, flags, 1, len(found), 0, 0)
        return head + query.question + records

    def serve_udp(self) -> None:
        """Answer until told to stop."""
        while True:
            data, peer = self.udp.recvfrom(512)
            if not data:
                return
            self.udp.sendto(self.answer(data, over_udp=True), peer)

    def serve_tcp(self) -> None:
        """Answer until told to stop."""
        while True:
            try:
                peer, _ = self.tcp.accept()
            except OSError:
                return
            with peer:
                data = peer.recv(512)
                reply = self.answer(data[2:], over_udp=False)
                peer.sendall(struct.pack("!H", len(reply)) + reply)


@contextlib.contextmanager
def nameserver(
    zone: Zone, ttl: int = 60, *, where: Netns | None = None, port: int = 0
) -> Iterator[Nameserver]:
    """A nameserver on 127.0.0.1, here or in a network namespace, during the block."""
    make = lambda: Nameserver(zone, ttl, port)  # noqa: E731
    server = where.do(make) if where is not None else make()
    threads = [threading.Thread(target=run) for run in (server.serve_udp, server.serve_tcp)]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        server.close()
        for thread in threads:
            thread.join()
        server.udp.close()
        server.tcp.close()
