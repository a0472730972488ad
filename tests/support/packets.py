"""A pcap file as packets and TCP streams. Reads Ethernet captures with IPv4 and IPv6.

Reassembly refuses to guess: a stream with a hole ends before the hole and says so.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_IPV6: Final = 0x86DD
PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_MAGIC_LITTLE: Final = (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1")
_HALF_SEQUENCE: Final = 1 << 31
_SEQUENCE_MASK: Final = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True, order=True)
class Endpoint:
    """An address and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Packet:
    """One IP packet."""

    at: float
    """Wall clock of the capture, seconds."""
    protocol: str
    source: Endpoint
    destination: Endpoint
    flags: int
    """TCP flags; 0 otherwise."""
    sequence: int
    payload: bytes
    """What follows the TCP or UDP header, or the IP header of anything else."""

    @property
    def opens(self) -> bool:
        """Whether this is the first packet of a TCP connection."""
        return self.flags & (SYN | ACK) == SYN


@dataclasses.dataclass
class Stream:
    """The bytes one side of a TCP connection sent."""

    source: Endpoint
    destination: Endpoint
    data: bytes = b""
    complete: bool = True
    """Whether the capture has it from the SYN on and without a hole."""


def read_packets(path: Path) -> list[Packet]:
    """Every IP packet of a capture file, in order."""
    return [packet for at, frame in _frames(path.read_bytes()) if (packet := _parse(at, frame))]


def raw_frames(path: Path) -> Iterator[bytes]:
    """Every frame of a capture file that is complete so far."""
    return (frame for _, frame in _frames(path.read_bytes()))


def _frames(content: bytes) -> Iterator[tuple[float, bytes]]:
    """Yield time and bytes of every frame; an unfinished last one is left out."""
    if len(content) < 24:
        return
    if content[:4] not in _MAGIC_LITTLE:
        raise ValueError(f"not a little-endian pcap file: starts with {content[:4].hex()}")
    if content[20:24] != b"\x01\0\0\0":
        raise ValueError("the capture is not of an Ethernet link; capture on a veth or bridge")
    fraction = 1e-9 if content[:4] == _MAGIC_LITTLE[1] else 1e-6
    offset = 24
    while offset + 16 <= len(content):
        seconds, part, length, _ = struct.unpack_from("<IIII", content, offset)
        frame = content[offset + 16 : offset + 16 + length]
        if len(frame) < length:
            return
        yield seconds + part * fraction, frame
        offset += 16 + length


def _parse(at: float, frame: bytes) -> Packet | None:
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == ETHERTYPE_IPV4:
        header = (frame[14] & 0x0F) * 4
        source, destination, number = frame[26:30], frame[30:34], frame[23]
        # A length of zero is a segment larger than 64 KiB that the card would have cut (GSO).
        end = 14 + (int.from_bytes(frame[16:18], "big") or len(frame) - 14)
    elif ethertype == ETHERTYPE_IPV6:
        header = 40
        source, destination, number = frame[22:38], frame[38:54], frame[20]
        end = 54 + (int.from_bytes(frame[18:20], "big") or len(frame) - 54)
    else:
        return None
    body = frame[14 + header : end]
    names = [str(ipaddress.ip_address(address)) for address in (source, destination)]
    protocol = PROTOCOLS.get(number, f"ip{number}")
    ports, flags, sequence = (0, 0), 0, 0
    if protocol == "tcp":
        *ports_found, sequence = struct.unpack_from("!HHI", body)
        ports, flags = (ports_found[0], ports_found[1]), body[13]
        body = body[(body[12] >> 4) * 4 :]
    elif protocol == "udp":
        ports, body = struct.unpack_from("!HH", body), body[8:]
    one, other = Endpoint(names[0], ports[0]), Endpoint(names[1], ports[1])
    return Packet(at, protocol, one, other, flags, sequence, body)


def service_ports(packets: Iterable[Packet]) -> set[str]:
    """Which services the packets talk to, as ``tcp/15008``.

    The destination of a SYN is the service. Of a connection whose SYN was not seen, the lower
    port is: proxies and clients dial from the ephemeral range above 32767.
    """
    found: set[str] = set()
    servers: dict[frozenset[Endpoint], Endpoint] = {}
    for packet in packets:
        ends = frozenset((packet.source, packet.destination))
        if packet.opens:
            servers[ends] = packet.destination
        lower = min(packet.source, packet.destination, key=lambda end: end.port)
        server = servers.get(ends, lower)
        found.add(f"{packet.protocol}/{server.port}")
    return found


def tcp_streams(packets: Iterable[Packet]) -> list[Stream]:
    """Both directions of every TCP connection, reassembled; a reused port begins anew."""
    pieces: list[_Pieces] = []
    current: dict[tuple[Endpoint, Endpoint], _Pieces] = {}
    for packet in packets:
        if packet.protocol != "tcp":
            continue
        key = (packet.source, packet.destination)
        starts = bool(packet.flags & SYN)
        known = current.get(key)
        if known is None or (starts and packet.sequence != known.first - 1 & _SEQUENCE_MASK):
            first = packet.sequence + starts & _SEQUENCE_MASK
            known = current[key] = _Pieces(*key, first=first, from_start=starts)
            pieces.append(known)
        known.add(packet)
    return [piece.stream() for piece in pieces]


@dataclasses.dataclass
class _Pieces:
    """Segments of one direction by their offset from the first byte."""

    source: Endpoint
    destination: Endpoint
    first: int
    from_start: bool
    segments: dict[int, bytes] = dataclasses.field(default_factory=dict)

    def add(self, packet: Packet) -> None:
        """Remember a segment; of two at one offset the longer."""
        offset = (packet.sequence + bool(packet.flags & SYN) - self.first) & _SEQUENCE_MASK
        if offset >= _HALF_SEQUENCE:
            offset -= 1 << 32
        if len(packet.payload) > len(self.segments.get(offset, b"")):
            self.segments[offset] = packet.payload

    def stream(self) -> Stream:
        """Put the segments together up to the first hole."""
        data = bytearray()
        complete = self.from_start
        start = min(self.segments, default=0) if not self.from_start else 0
        for offset in sorted(self.segments):
            known = len(data) - (offset - start)
            if known < 0:
                complete = False
                break
            data += self.segments[offset][known:]
        return Stream(self.source, self.destination, bytes(data), complete)
