"""A client's side of DNS: questions for A and AAAA, and what the answers say."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from metalmesh.dns.message import (
    HEADER_BYTES,
    RecordType,
    ResponseCode,
    encode_name,
    read_name,
)
from metalmesh.errors import ProtocolError

if TYPE_CHECKING:
    from metalmesh.model.workload import IPAddress

_RESPONSE: Final = 0x8000
_TRUNCATED: Final = 0x0200
_RECURSION_DESIRED: Final = 0x0100
_CLASS_IN: Final = 1
#: longest time an answer is believed, whatever it says (RFC 8767 section 4)
_MAX_TTL_SECONDS: Final = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Found:
    """What a response says about the name that was asked for."""

    code: int
    addresses: tuple[IPAddress, ...] = ()
    #: of the shortest-lived record that was used; 0 without any
    ttl_seconds: int = 0
    #: to be asked again over TCP
    truncated: bool = False


def encode_question(name: str, kind: RecordType) -> bytes:
    """The question section."""
    return encode_name(name) + struct.pack("!2H", kind, _CLASS_IN)


def encode_query(message_id: int, question: bytes) -> bytes:
    """A query with recursion."""
    return struct.pack("!6H", message_id, _RECURSION_DESIRED, 1, 0, 0, 0) + question


def parse_response(data: bytes, kind: RecordType) -> Found:
    """Read the addresses of the name in the question, through aliases; ProtocolError if broken."""
    try:
        _, flags, questions, answers, _, _ = struct.unpack("!6H", data[:HEADER_BYTES])
        if not flags & _RESPONSE or questions != 1:
            raise ProtocolError("DNS response without its question")
        name, at = read_name(data, HEADER_BYTES)
        at += 4
        aliases: dict[str, tuple[str, int]] = {}
        addresses: dict[str, list[tuple[IPAddress, int]]] = {}
        for _ in range(answers):
            owner, at = read_name(data, at)
            record, class_, ttl, length = struct.unpack("!HHIH", data[at : at + 10])
            at += 10
            content = data[at : at + length]
            if len(content) < length:
                raise ProtocolError("DNS record runs beyond the message")
            if class_ == _CLASS_IN and record == RecordType.CNAME:
                aliases[owner] = (read_name(data, at)[0], ttl)
            elif class_ == _CLASS_IN and record == kind:
                addresses.setdefault(owner, []).append((_address(content), ttl))
            at += length
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"DNS response: {error}") from error
    return _follow(name, aliases, addresses, flags)


def _address(content: bytes) -> IPAddress:
    return IPv4Address(content) if len(content) == 4 else IPv6Address(content)


def _follow(
    name: str,
    aliases: dict[str, tuple[str, int]],
    addresses: dict[str, list[tuple[IPAddress, int]]],
    flags: int,
) -> Found:
    ttls = []
    for _ in range(len(aliases)):
        if name not in aliases:
            break
        name, ttl = aliases[name]
        ttls.append(ttl)
    found = addresses.get(name, [])
    ttls += [ttl for _, ttl in found]
    return Found(
        code=flags & 0xF,
        addresses=tuple(address for address, _ in found),
        # a negative number on the wire counts as 0 (RFC 2181 section 8)
        ttl_seconds=min([ttl if ttl < 1 << 31 else 0 for ttl in ttls] + [_MAX_TTL_SECONDS])
        if found
        else 0,
        truncated=flags & _TRUNCATED != 0,
    )


def settles(found: Found) -> bool:
    """Whether a nameserver has answered for good: there is nothing to gain from the next one."""
    return found.code in (ResponseCode.NOERROR, ResponseCode.NXDOMAIN)
