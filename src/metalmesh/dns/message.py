"""DNS messages (RFC 1035, EDNS of RFC 6891): as much as a server of A, AAAA and SRV needs.

Queries are parsed, answers are built; whatever is forwarded stays bytes. Names are lower-case text
without the final dot; the question is echoed byte for byte, its case included.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from metalmesh.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metalmesh.model.workload import IPAddress

HEADER_BYTES: Final = 12
MAX_NAME_BYTES: Final = 255
MAX_LABEL_BYTES: Final = 63
#: largest answer over UDP without EDNS, and the most we send with it
PLAIN_UDP_BYTES: Final = 512
EDNS_UDP_BYTES: Final = 1232
_RESPONSE: Final = 0x8000
_AUTHORITATIVE: Final = 0x0400
_TRUNCATED: Final = 0x0200
_RECURSION_DESIRED: Final = 0x0100
_RECURSION_AVAILABLE: Final = 0x0080
_CLASS_IN: Final = 1
_TYPE_OPT: Final = 41
_POINTER: Final = 0xC0
_QUESTION_NAME: Final = b"\xc0\x0c"


class RecordType(IntEnum):
    """Record types this server answers itself."""

    A = 1
    CNAME = 5
    AAAA = 28
    SRV = 33


class ResponseCode(IntEnum):
    """Ends of a query."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One question."""

    id: int
    recursion_desired: bool
    name: str
    type: int
    in_class: bool
    #: the question section as it came
    question: bytes
    #: payload size of its OPT record; None without EDNS
    edns_bytes: int | None = None

    @property
    def udp_bytes(self) -> int:
        """How long an answer over UDP may be."""
        if self.edns_bytes is None:
            return PLAIN_UDP_BYTES
        return max(PLAIN_UDP_BYTES, min(self.edns_bytes, EDNS_UDP_BYTES))


@dataclass(frozen=True, slots=True)
class Location:
    """Where a service is found (SRV, RFC 2782); all are equally good."""

    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said about a name: an alias first if there is one, then what was asked for."""

    code: ResponseCode = ResponseCode.NOERROR
    alias: str = ""
    addresses: tuple[IPAddress, ...] = ()
    locations: tuple[Location, ...] = ()
    ttl_seconds: int = 30


class BadQueryError(ProtocolError):
    """A query that is answered with an error code alone."""

    def __init__(self, message_id: int, code: ResponseCode, message: str) -> None:
        self.id = message_id
        self.code = code
        super().__init__(message)


def parse_query(data: bytes) -> Query:
    """Parse a query.

    :class:`BadQueryError` when the client is owed an error, plain :class:`ProtocolError` when the
    packet is to be dropped.
    """
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"DNS message of {len(data)} bytes has no header")
    identifier, flags, questions, answers, authority, additional = struct.unpack(
        "!6H", data[:HEADER_BYTES]
    )
    if flags & _RESPONSE:
        raise BadQueryError(identifier, ResponseCode.FORMERR, "DNS response sent as a query")
    if flags >> 11 & 0xF:
        raise BadQueryError(identifier, ResponseCode.NOTIMP, "DNS opcode is not QUERY")
    if questions != 1:
        raise BadQueryError(identifier, ResponseCode.FORMERR, f"DNS query of {questions} questions")
    try:
        name, at = read_name(data, HEADER_BYTES)
        record_type, record_class = struct.unpack("!2H", data[at : at + 4])
        edns = _edns(data, at + 4, answers + authority, additional)
    except (ProtocolError, struct.error) as error:
        raise BadQueryError(identifier, ResponseCode.FORMERR, f"DNS query: {error}") from error
    return Query(
        id=identifier,
        recursion_desired=bool(flags & _RECURSION_DESIRED),
        name=name,
        type=record_type,
        in_class=record_class == _CLASS_IN,
        question=data[HEADER_BYTES : at + 4],
        edns_bytes=edns,
    )


def read_name(data: bytes, at: int) -> tuple[str, int]:
    """Read a name; return it and where it ends. A pointer may only lead backwards."""
    labels: list[str] = []
    end = -1
    limit = at
    total = 0
    while True:
        if at >= len(data):
            raise ProtocolError("name runs beyond the message")
        length = data[at]
        if length & _POINTER == _POINTER:
            if at + 1 >= len(data):
                raise ProtocolError("name runs beyond the message")
            target = (length & ~_POINTER) << 8 | data[at + 1]
            end = at + 2 if end < 0 else end
            if target >= limit:
                raise ProtocolError("name points forward")
            at = limit = target
            continue
        if length > MAX_LABEL_BYTES:
            raise ProtocolError("label is too long")
        label = data[at + 1 : at + 1 + length]
        at += 1 + length
        if not length:
            return ".".join(labels), end if end >= 0 else at
        total += 1 + length
        if len(label) < length or total >= MAX_NAME_BYTES:
            raise ProtocolError("name is too long or runs beyond the message")
        labels.append(_text(label))


def _text(label: bytes) -> str:
    # a dot inside a label must not look like two labels
    return label.decode("latin-1").replace(".", "\\.").lower()


def _edns(data: bytes, at: int, skipped: int, additional: int) -> int | None:
    """Find the OPT record; a query has nothing before it in practice."""
    for number in range(skipped + additional):
        _, at = read_name(data, at)
        record_type, payload, _, length = struct.unpack("!HHIH", data[at : at + 10])
        at += 10 + length
        if at > len(data):
            raise ProtocolError("record runs beyond the message")
        if number >= skipped and record_type == _TYPE_OPT:
            return int(payload)
    return None


def encode_error(message_id: int, code: ResponseCode) -> bytes:
    """An error without a question, for what could not be parsed."""
    return struct.pack("!6H", message_id, _RESPONSE | code, 0, 0, 0, 0)


def encode_answer(
    query: Query, answer: Answer, *, authoritative: bool, max_bytes: int = 65535
) -> bytes:
    """Build the response; what does not fit sets the truncation flag."""
    records = _records(answer)
    opt = _opt() if query.edns_bytes is not None else b""
    size = HEADER_BYTES + len(query.question) + len(opt) + sum(map(len, records))
    flags = _RESPONSE | _RECURSION_AVAILABLE | answer.code
    if size > max_bytes:
        records, flags = [], flags | _TRUNCATED
    if query.recursion_desired:
        flags |= _RECURSION_DESIRED
    if authoritative:
        flags |= _AUTHORITATIVE
    head = struct.pack("!6H", query.id, flags, 1, len(records), 0, 1 if opt else 0)
    return b"".join([head, query.question, *records, opt])


def _records(answer: Answer) -> list[bytes]:
    owner = _QUESTION_NAME
    records = []
    if answer.alias:
        name = encode_name(answer.alias)
        records.append(_record(owner, RecordType.CNAME, answer.ttl_seconds, name))
        owner = name
    for address in answer.addresses:
        kind = RecordType.A if address.version == 4 else RecordType.AAAA
        records.append(_record(owner, kind, answer.ttl_seconds, address.packed))
    for location in answer.locations:
        data = struct.pack("!3H", 0, 0, location.port) + encode_name(location.target)
        records.append(_record(owner, RecordType.SRV, answer.ttl_seconds, data))
    return records


def _record(owner: bytes, kind: RecordType, ttl_seconds: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, _CLASS_IN, ttl_seconds, len(data)) + data


def _opt() -> bytes:
    return b"\0" + struct.pack("!HHIH", _TYPE_OPT, EDNS_UDP_BYTES, 0, 0)


def encode_name(name: str) -> bytes:
    """A name on the wire, uncompressed."""
    parts: Sequence[str] = name.split(".") if name else []
    encoded = b""
    for part in parts:
        label = part.encode("latin-1")
        if not 0 < len(label) <= MAX_LABEL_BYTES:
            raise ProtocolError(f"DNS name {name!r}: a label has 1 to {MAX_LABEL_BYTES} bytes")
        encoded += bytes([len(label)]) + label
    return encoded + b"\0"
