"""ZDS packets: exact bytes, round trips, and what is refused (istio-facts 9.1)."""

from __future__ import annotations

import pytest

from metalmesh.errors import ProtocolError
from metalmesh.zds.messages import (
    MAX_PACKET_BYTES,
    Ack,
    AddWorkload,
    DelWorkload,
    Hello,
    KeepWorkload,
    SnapshotSent,
    decode_hello,
    decode_request,
    decode_response,
    encode_hello,
    encode_request,
    encode_response,
)


def test_hello_is_version_one_on_the_wire():
    assert encode_hello() == b"\x08\x01"
    assert decode_hello(b"\x08\x01") == Hello()


@pytest.mark.parametrize("packet", [b"", b"\x08\x00", b"\x08\x02", b"\xff\xff"])
def test_hello_of_another_shape_is_refused(packet):
    with pytest.raises(ProtocolError):
        decode_hello(packet)


@pytest.mark.parametrize(
    ("request_", "packet"),
    [
        # oneof fields: add 1, del 2, snapshot_sent 3, keep 5; DelWorkload.uid is field 2
        (AddWorkload("u", "n", "s", "a"), b"\x0a\x0e\x0a\x01u\x12\x09\x0a\x01n\x12\x01s\x1a\x01a"),
        (DelWorkload("u"), b"\x12\x03\x12\x01u"),
        (SnapshotSent(), b"\x1a\x00"),
        (KeepWorkload("u"), b"\x2a\x03\x0a\x01u"),
    ],
)
def test_requests_have_the_published_bytes(request_, packet):
    assert encode_request(request_) == packet
    assert decode_request(packet) == request_


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "closed"),
        (b"\x0a\x03\x0a\x01u", "workload_info"),
        (b"\x12\x00", "uid"),
        (b"\x2a\x00", "uid"),
        (b"\x32\x00", "no payload"),
        (b"\xff", "not protobuf"),
        (b"\x00" * (MAX_PACKET_BYTES + 1), "1025 bytes"),
    ],
)
def test_malformed_requests_are_refused(packet, reason):
    with pytest.raises(ProtocolError, match=reason):
        decode_request(packet)


def test_request_longer_than_a_packet_is_refused_not_cut():
    with pytest.raises(ProtocolError, match="shorten"):
        encode_request(AddWorkload("u" * 1100, "n", "s", "a"))


@pytest.mark.parametrize("error", ["", "failure to start proxy : no netns"])
def test_answers_round_trip(error):
    assert decode_response(encode_response(Ack(error))) == Ack(error)


def test_empty_ack_is_still_an_ack_on_the_wire():
    assert encode_response(Ack()) == b"\x0a\x00"


def test_long_error_is_cut_to_fit_the_packet():
    packet = encode_response(Ack("ü" * 5000))
    assert len(packet) <= MAX_PACKET_BYTES
    assert set(decode_response(packet).error) == {"ü"}


def test_answer_without_payload_is_refused():
    with pytest.raises(ProtocolError, match="ack"):
        decode_response(b"\x12\x00")
