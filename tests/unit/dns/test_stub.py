"""What answers of nameservers say."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.dns.message import RecordType, encode_name
from metalmesh.dns.stub import encode_query, encode_question, parse_response, settles
from metalmesh.errors import ProtocolError

A, AAAA, CNAME = RecordType.A, RecordType.AAAA, RecordType.CNAME


def record(owner: str, kind: int, content: bytes, ttl: int = 60) -> bytes:
    return encode_name(owner) + struct.pack("!HHIH", kind, 1, ttl, len(content)) + content


def response(*records: bytes, kind: RecordType = A, flags: int = 0x8180) -> bytes:
    head = struct.pack("!6H", 7, flags, 1, len(records), 0, 0)
    return head + encode_question("a.example", kind) + b"".join(records)


V4, V6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def test_query_asks_for_recursion() -> None:
    query = encode_query(0x1234, encode_question("a.b", AAAA))
    assert query == bytes.fromhex("1234 0100 0001 0000 0000 0000 0161 0162 00 001c 0001")


@pytest.mark.parametrize(
    ("records", "kind", "addresses", "ttl"),
    [
        pytest.param([record("a.example", A, V4.packed)], A, (V4,), 60, id="A"),
        pytest.param([record("A.Example", AAAA, V6.packed)], AAAA, (V6,), 60, id="AAAA"),
        pytest.param([], A, (), 0, id="nothing"),
        pytest.param([record("b.example", A, V4.packed)], A, (), 0, id="somebody else's"),
        pytest.param(
            [
                record("c.example", A, V4.packed, 300),
                record("a.example", CNAME, encode_name("b.example"), 20),
                record("b.example", CNAME, encode_name("c.example"), 40),
            ],
            A, (V4,), 20, id="aliases in any order",
        ),
        pytest.param(
            [record("a.example", CNAME, encode_name("a.example"))], A, (), 0, id="alias of itself"
        ),
        pytest.param(
            [record("a.example", A, V4.packed, 1 << 31)], A, (V4,), 0, id="negative time"
        ),
        pytest.param(
            [record("a.example", A, V4.packed, 99_999_999)], A, (V4,), 604_800, id="endless time"
        ),
        pytest.param(
            [record("a.example", 16, b"\x01x"), record("a.example", A, V4.packed)],
            A, (V4,), 60, id="other types",
        ),
    ],
)  # fmt: skip
def test_addresses_are_found(
    records: list[bytes], kind: RecordType, addresses: tuple[object, ...], ttl: int
) -> None:
    found = parse_response(response(*records, kind=kind), kind)
    assert (found.addresses, found.ttl_seconds, found.truncated) == (addresses, ttl, False)


def test_codes_and_truncation() -> None:
    assert settles(parse_response(response(flags=0x8183), A))
    assert settles(parse_response(response(), A))
    assert not settles(parse_response(response(flags=0x8182), A))
    assert parse_response(response(flags=0x8380), A).truncated


@pytest.mark.parametrize(
    "data",
    [
        b"",
        response(flags=0x0100),
        response(record("a.example", A, b"\x01\x02")),
        response(record("a.example", A, V4.packed))[:-1],
        struct.pack("!6H", 7, 0x8180, 1, 9, 0, 0) + encode_question("a.example", A),
    ],
)
def test_broken_response_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_response(data, A)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_nothing_but_protocol_error_escapes(tail: bytes, answers: int) -> None:
    head = struct.pack("!6H", 7, 0x8180, 1, answers, 0, 0)
    for data in (tail, head + encode_question("a.example", A) + tail):
        with contextlib.suppress(ProtocolError):
            parse_response(data, A)
