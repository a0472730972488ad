"""DNS on the wire: exact bytes, echoes, limits, and garbage (RFC 1035, RFC 6891)."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.dns.message import (
    Answer,
    BadQueryError,
    ResponseCode,
    encode_answer,
    encode_error,
    encode_name,
    parse_query,
    read_name,
)
from metalmesh.errors import ProtocolError

V4, V6 = ip_address("10.96.0.10"), ip_address("fd10::10")


def query(name: str = "echo.demo", kind: int = 1, *, flags: int = 0x0100, edns: int = 0) -> bytes:
    opt = b"\0" + struct.pack("!HHIH", 41, edns, 0, 0) if edns else b""
    head = struct.pack("!6H", 7, flags, 1, 0, 0, 1 if edns else 0)
    return head + encode_name(name) + struct.pack("!HH", kind, 1) + opt


def test_query_is_read_with_its_name_in_lower_case():
    parsed = parse_query(query("Echo.DEMO", 28, edns=4096))
    assert (parsed.id, parsed.name, parsed.type, parsed.edns_bytes) == (7, "echo.demo", 28, 4096)
    assert parsed.recursion_desired
    assert parsed.udp_bytes == 1232


@pytest.mark.parametrize(("edns", "limit"), [(0, 512), (100, 512), (900, 900), (9000, 1232)])
def test_udp_limit_follows_edns_within_bounds(edns, limit):
    assert parse_query(query(edns=edns)).udp_bytes == limit


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (query(flags=0x8100), ResponseCode.FORMERR),
        (query(flags=0x2100), ResponseCode.NOTIMP),
        (struct.pack("!6H", 7, 0, 0, 0, 0, 0), ResponseCode.FORMERR),
        (struct.pack("!6H", 7, 0, 2, 0, 0, 0) + b"\0\0\1\0\1", ResponseCode.FORMERR),
        (query()[:-3], ResponseCode.FORMERR),
        (query()[:14], ResponseCode.FORMERR),
        (query()[:12] + b"\xc0\x0c\0\1\0\1", ResponseCode.FORMERR),
        (query()[:12] + b"\x40a\0\0\1\0\1", ResponseCode.FORMERR),
    ],
)
def test_bad_queries_name_the_code_the_client_is_owed(data, code):
    with pytest.raises(BadQueryError) as caught:
        parse_query(data)
    assert (caught.value.id, caught.value.code) == (7, code)
    assert encode_error(7, code) == struct.pack("!6H", 7, 0x8000 | code, 0, 0, 0, 0)


def test_packet_without_a_header_is_dropped():
    with pytest.raises(ProtocolError) as caught:
        parse_query(b"\0" * 11)
    assert not isinstance(caught.value, BadQueryError)


@given(st.binary(max_size=600))
def test_only_our_errors_escape_from_garbage(data):
    with contextlib.suppress(ProtocolError):
        parse_query(data)


@given(st.binary(max_size=80))
def test_names_of_garbage_end_within_the_message(data):
    try:
        _, end = read_name(data, 0)
    except ProtocolError:
        return
    assert 0 < end <= len(data)


def test_dot_inside_a_label_does_not_look_like_two_labels():
    assert read_name(b"\x03a.b\x01c\0", 0)[0] == "a\\.b.c"


def test_answer_has_the_expected_bytes():
    parsed = parse_query(query("Ab", 1))
    assert encode_answer(parsed, Answer(addresses=(V4,)), authoritative=True) == (
        b"\0\7\x85\x80\0\1\0\1\0\0\0\0\2Ab\0\0\1\0\1\xc0\x0c\0\1\0\1\0\0\0\x1e\0\4\x0a\x60\0\x0a"
    )


def test_alias_owns_the_addresses():
    parsed = parse_query(query("a.b", 28))
    reply = encode_answer(parsed, Answer(alias="a", addresses=(V6,)), authoritative=True)
    answers = reply[12 + len(parsed.question) :]
    cname = b"\xc0\x0c\0\5\0\1\0\0\0\x1e\0\3\1a\0"
    assert answers == cname + b"\1a\0\0\x1c\0\1\0\0\0\x1e\0\x10" + V6.packed


def test_edns_is_echoed_and_forwarded_answers_are_not_authoritative():
    reply = encode_answer(parse_query(query(edns=1232)), Answer(), authoritative=False)
    assert reply.endswith(b"\0\0\x29\x04\xd0\0\0\0\0\0\0")
    assert struct.unpack("!H", reply[2:4])[0] & 0x0400 == 0


def test_too_long_answer_is_cut_to_none_and_says_so():
    parsed = parse_query(query())
    many = Answer(addresses=tuple(ip_address(f"10.0.{n // 250}.{n % 250}") for n in range(400)))
    reply = encode_answer(parsed, many, authoritative=True, max_bytes=parsed.udp_bytes)
    assert len(reply) <= 512
    assert struct.unpack("!4H", reply[2:10])[:3] == (0x8780, 1, 0)
    assert len(encode_answer(parsed, many, authoritative=True)) == 12 + 15 + 400 * 16


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".a"])
def test_impossible_names_are_not_encoded(name):
    with pytest.raises(ProtocolError):
        encode_name(name)
