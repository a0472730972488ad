"""Header blocks: what we write others read, what others write we read, and nothing else escapes."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import ProtocolError
from metalmesh.hbone import headers as h
from metalmesh.hbone.frames import H2Error

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=300)


def test_connect_block_is_plain_hpack() -> None:
    """An independent decoder reads our requests."""
    prefix = h.connect_prefix("10.0.0.1:80", "k8s.cluster.name=a,service.name=b")
    block = h.connect_block(
        prefix, 'for="10.0.0.2:1234"', "00-" + "a" * 32 + "-" + "b" * 16 + "-00"
    )
    assert Decoder().decode(block) == [
        (":method", "CONNECT"),
        (":authority", "10.0.0.1:80"),
        ("baggage", "k8s.cluster.name=a,service.name=b"),
        ("forwarded", 'for="10.0.0.2:1234"'),
        ("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-00"),
    ]


@pytest.mark.parametrize("status", ["200", "400", "401", "503"])
def test_response_block_is_plain_hpack(status: str) -> None:
    assert Decoder().decode(h.response_block(status)) == [(":status", status)]
    assert Decoder().decode(h.response_block(status, "a=b"))[1] == ("baggage", "a=b")


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_own_literals_are_read_by_both_decoders(fields: list[tuple[str, str]]) -> None:
    block = b"".join(h.literal(name, value) for name, value in fields)
    assert Decoder(max_header_list_size=1 << 20).decode(block) == fields
    assert h.decode_plain(block) == fields


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.booleans(), st.booleans())
def test_plain_decoder_agrees_with_hpack_or_declines(
    fields: list[tuple[str, str]], huffman: bool, stateless: bool
) -> None:
    """Whatever an encoder may say: the same fields, or none at all."""
    encoder = Encoder()
    if stateless:
        encoder.header_table_size = 0
    block = encoder.encode(fields, huffman=huffman)
    assert h.decode_plain(block) in (fields, None)


@given(st.binary(max_size=200))
def test_plain_decoder_never_disagrees_on_garbage(block: bytes) -> None:
    """Where both understand it they say the same."""
    ours = h.decode_plain(block)
    if ours is None:
        return
    with contextlib.suppress(Exception):
        assert [tuple(item) for item in Decoder().decode(block)] == ours


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_decoder_lets_only_protocol_errors_escape(blocks: list[bytes]) -> None:
    decoder = h.HeaderDecoder(4096)
    for block in blocks:
        with contextlib.suppress(ProtocolError):
            decoder.decode(block)


def test_dynamic_table_works_until_it_is_forbidden() -> None:
    """A peer may use its table before it has seen our SETTINGS."""
    decoder, encoder = h.HeaderDecoder(4096), Encoder()
    for _ in range(2):
        block = encoder.encode([("baggage", "x=y")])
        assert decoder.decode(block) == {"baggage": "x=y"}
    decoder.forbid_table()
    with pytest.raises(H2Error):
        decoder.decode(encoder.encode([("other", "z")]))
    encoder.header_table_size = 0
    decoder, encoder = h.HeaderDecoder(4096), Encoder()
    decoder.forbid_table()
    encoder.header_table_size = 0
    assert decoder.decode(encoder.encode([("baggage", "x=y")])) == {"baggage": "x=y"}


def test_header_list_is_bounded() -> None:
    """A small block must not become a large list (HPACK bomb)."""
    decoder, encoder = h.HeaderDecoder(1000), Encoder()
    with pytest.raises(H2Error):
        decoder.decode(encoder.encode([("a" * 30, "b" * 30)] * 40))
    with pytest.raises(H2Error):
        h.HeaderDecoder(1000).decode(h.literal("x", "y" * 1000))


def test_repeated_headers_are_joined_and_pseudo_headers_are_not() -> None:
    decoder = h.HeaderDecoder(4096)
    block = h.literal("baggage", "a=1") + h.literal("baggage", "b=2")
    assert decoder.decode(block) == {"baggage": "a=1,b=2"}
    for bad in (
        h.literal(":method", "A") + h.literal(":method", "B"),
        h.literal("x", "y") + h.literal(":method", "A"),
        h.literal("Upper", "x"),
    ):
        with pytest.raises(h.MalformedError):
            decoder.decode(bad)


@pytest.mark.parametrize(
    ("authority", "address", "port"),
    [
        ("10.0.0.1:80", ip_address("10.0.0.1"), 80),
        ("[fd00::5]:8080", ip_address("fd00::5"), 8080),
        ("a.example.org:443", "a.example.org", 443),
        ("10.0.0.1:65535", ip_address("10.0.0.1"), 65535),
    ],
)
def test_authority_is_parsed(authority: str, address: object, port: int) -> None:
    assert h.parse_authority(authority) == (address, port)


@pytest.mark.parametrize(
    "authority",
    [
        *("", ":", "10.0.0.1", "10.0.0.1:", ":80", "10.0.0.1:0", "10.0.0.1:65536"),
        *("10.0.0.1:080000", "fd00::5:80", "[fd00::5]", "[10.0.0.1]:80", "[x]:80"),
        *("10.0.0.1:-1", "10.0.0.1:8 0", "a:\u0663"),
    ],
)
def test_bad_authority_is_refused(authority: str) -> None:
    with pytest.raises(h.MalformedError):
        h.parse_authority(authority)


@given(st.text(max_size=60))
def test_only_malformed_error_escapes_from_authorities(text: str) -> None:
    with contextlib.suppress(h.MalformedError):
        _, port = h.parse_authority(text)
        assert 0 < port < 65536


@given(st.ip_addresses(), st.integers(1, 65535))
def test_formatted_authority_is_parsed_back(address: object, port: int) -> None:
    text = h.format_authority(str(address).partition("%")[0], port)
    assert h.parse_authority(text)[1] == port


def test_only_plain_connect_is_served() -> None:
    good = {":method": "CONNECT", ":authority": "10.0.0.1:80"}
    assert h.check_connect(good) == "10.0.0.1:80"
    for change in (
        {":method": "GET"},
        {":method": ""},
        {":path": "/"},
        {":scheme": "https"},
        {":protocol": "websocket"},
        {":authority": ""},
    ):
        with pytest.raises(h.MalformedError):
            h.check_connect({**good, **change})


TAILS = st.lists(
    st.tuples(
        st.sampled_from(("forwarded", "traceparent", "baggage", ":path", "Upper", "x-more")),
        st.text("abc=;:,./0123456789", max_size=30),
    ),
    max_size=4,
)


@given(st.lists(TAILS, min_size=1, max_size=6))
def test_requests_that_begin_alike_are_read_as_if_each_were_the_first(
    tails: list[list[tuple[str, str]]],
) -> None:
    """What one request and the next have in common is decoded once; nothing else may differ."""
    decoder = h.HeaderDecoder(16384)
    decoder.forbid_table()
    prefix = h.connect_prefix("10.0.0.1:80", "k8s.namespace.name=demo")
    for tail in tails:
        block = prefix + b"".join(h.literal(name, value) for name, value in tail)
        assert _outcome(decoder, block) == _outcome(h.HeaderDecoder(16384), block)


def _outcome(decoder: h.HeaderDecoder, block: bytes) -> object:
    try:
        return decoder.decode(block)
    except h.MalformedError as error:
        return str(error)
