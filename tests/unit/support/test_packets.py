"""Reassembly neither invents bytes nor hides a hole; ports are told from SYNs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.packets import (
    ACK,
    SYN,
    Endpoint,
    Packet,
    read_packets,
    service_ports,
    tcp_streams,
)

CLIENT, SERVER = Endpoint("10.0.0.1", 40000), Endpoint("10.0.0.2", 15008)
LAST_SEQUENCE = (1 << 32) - 1


def tcp(sequence: int, payload: bytes = b"", flags: int = ACK, *, back: bool = False) -> Packet:
    """A segment from the client, or back to it."""
    ends = (SERVER, CLIENT) if back else (CLIENT, SERVER)
    return Packet(0.0, "tcp", *ends, flags, sequence & LAST_SEQUENCE, payload)


@given(
    data=st.binary(min_size=1, max_size=200),
    start=st.integers(0, LAST_SEQUENCE),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    randomness=st.randoms(use_true_random=False),
)
def test_any_order_and_overlap_gives_the_stream(data, start, cuts, randomness) -> None:
    """Reordered, repeated and overlapping segments, also across the end of the numbers."""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    segments = [
        tcp(start + 1 + low, data[low : high + 3]) for low, high in itertools.pairwise(edges)
    ]
    segments += segments[:2]
    randomness.shuffle(segments)
    (stream,) = tcp_streams([tcp(start, flags=SYN), *segments])
    assert stream.data == data
    assert stream.complete


def test_hole_ends_the_stream_and_is_told() -> None:
    """What follows a lost segment is not glued to what was before it."""
    (stream,) = tcp_streams([tcp(0, flags=SYN), tcp(1, b"one"), tcp(7, b"three")])
    assert stream.data == b"one"
    assert not stream.complete


def test_stream_without_syn_is_read_but_not_complete() -> None:
    """A recording that began too late can be searched, but proves no handshake."""
    (stream,) = tcp_streams([tcp(100, b"middle"), tcp(106, b" part")])
    assert stream.data == b"middle part"
    assert not stream.complete


def test_reused_port_begins_a_new_stream() -> None:
    """Two connections of the same ends are two streams."""
    first = [tcp(0, flags=SYN), tcp(1, b"first")]
    second = [tcp(9000, flags=SYN), tcp(9001, b"second")]
    assert [stream.data for stream in tcp_streams(first + second)] == [b"first", b"second"]


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([tcp(0, flags=SYN), tcp(0, flags=SYN | ACK, back=True)], {"tcp/15008"}),
        ([tcp(5, b"x"), tcp(5, b"y", back=True)], {"tcp/15008"}),
        ([Packet(0.0, "udp", CLIENT, Endpoint("10.0.0.2", 53), 0, 0, b"")], {"udp/53"}),
        ([Packet(0.0, "icmp", Endpoint("a", 0), Endpoint("b", 0), 0, 0, b"")], {"icmp/0"}),
    ],
    ids=["syn", "no syn", "udp", "icmp"],
)
def test_service_is_the_destination_of_the_syn(packets: list[Packet], expected: set[str]) -> None:
    """Or the lower port when the SYN was not seen."""
    assert service_ports(packets) == expected


def test_syn_to_a_high_port_from_a_low_one_is_not_mistaken() -> None:
    """A client may bind a low port; the SYN decides."""
    low, high = Endpoint("10.0.0.1", 15008), Endpoint("10.0.0.2", 40000)
    syn = Packet(0.0, "tcp", low, high, SYN, 0, b"")
    assert service_ports([syn, Packet(0.0, "tcp", high, low, ACK, 0, b"x")]) == {"tcp/40000"}


@pytest.mark.parametrize("content", [b"\n\r\r\n" + bytes(40), b"\xd4\xc3\xb2\xa1" + bytes(36)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """pcapng and captures of other links are named, not misread."""
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pcap|Ethernet"):
        read_packets(path)
