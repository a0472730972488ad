"""What a peer must not do: each fault ends the connection with its own code (RFC 9113)."""

from __future__ import annotations

import struct

import pytest

from metalmesh.hbone.frames import H2Error, Limits
from tests.support.h2_frames import Peer, RecordingMux, frame

SMALL = Limits(max_streams=3, stream_window=1000, connection_window=65535 + 4000)


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def server(peer: Peer) -> RecordingMux:
    """A server that has had the client's hello."""
    mux = RecordingMux()
    mux.feed(peer.hello())
    mux.take()
    return mux


BROKEN: dict[str, tuple[bytes, int]] = {
    "frame too long": (frame(4, 0, 0, bytes(65538)), 6),
    "data too long": (struct.pack(">IBI", (1 << 20) + 1 << 8, 0, 1), 6),
    "window of stream": (frame(0, 0, 1, bytes(1001)), 3),
    "settings not pairs": (frame(4, 0, 0, bytes(5)), 6),
    "settings on stream": (frame(4, 0, 1), 1),
    "settings ack with content": (frame(4, 1, 0, bytes(6)), 6),
    "window too large": (frame(4, 0, 0, struct.pack(">HI", 4, 1 << 31)), 3),
    "frame size too small": (frame(4, 0, 0, struct.pack(">HI", 5, 100)), 1),
    "push neither 0 nor 1": (frame(4, 0, 0, struct.pack(">HI", 2, 2)), 1),
    "ping too short": (frame(6, 0, 0, bytes(7)), 6),
    "ping on stream": (frame(6, 0, 1, bytes(8)), 1),
    "window update of 0": (frame(8, 0, 1, bytes(4)), 1),
    "window update too short": (frame(8, 0, 0, bytes(3)), 6),
    "connection window overflow": (frame(8, 0, 0, b"\x7f\xff\xff\xff"), 3),
    "stream window overflow": (frame(8, 0, 1, b"\x7f\xff\xff\xff"), 3),
    "window update of idle stream": (frame(8, 0, 99, b"\0\0\0\1"), 1),
    "data on idle stream": (frame(0, 0, 99, b"x"), 1),
    "data on stream 0": (frame(0, 0, 0, b"x"), 1),
    "reset of idle stream": (frame(3, 0, 99, bytes(4)), 1),
    "reset too short": (frame(3, 0, 1, bytes(3)), 6),
    "even stream": (frame(1, 4, 2, b"\x88"), 1),
    "continuation alone": (frame(9, 4, 1, b"\x88"), 1),
    "interrupted block": (frame(1, 0, 3, b"\x88") + frame(6, 0, 0, bytes(8)), 1),
    "data within a block": (frame(1, 0, 3, b"\x88") + frame(0, 0, 1, b"x"), 1),
    "block of another stream": (frame(1, 0, 3, b"\x88") + frame(9, 4, 5, b"\x88"), 1),
    "endless block": (frame(1, 0, 3, b"\x88") + frame(9, 0, 3, b"") * 40, 11),
    "padding too long": (frame(0, 8, 1, b"\x09x"), 1),
    "padding without length": (frame(0, 8, 1, b""), 1),
    "push promise": (frame(5, 4, 1, bytes(8)), 1),
    "bad block": (frame(1, 4, 3, b"\xff\xff\xff\xff\xff\xff"), 9),
    "goaway too short": (frame(7, 0, 0, bytes(7)), 1),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_protocol_ends_the_connection_with_its_code(peer: Peer, kind: str) -> None:
    """RFC 9113: each fault has its error code."""
    data, code = BROKEN[kind]
    server = RecordingMux(limits=SMALL)
    server.feed(peer.hello() + peer.connect(1))
    with pytest.raises(H2Error) as caught:
        server.feed(data)
    assert caught.value.code == code
    server.say_goodbye(caught.value)
    assert server.frames()[-1] == f"GoAway 0 1 {code}"


FLOODS = {
    "ping": frame(6, 0, 0, bytes(8)),
    "settings": frame(4, 0, 0),
    "empty data": frame(0, 0, 1),
    "priority": frame(2, 0, 1, bytes(5)),
    "unknown": frame(77, 0, 0, b"x"),
    "goaway": frame(7, 0, 0, bytes(8)),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_flood_is_cut_off_and_a_trickle_is_not(peer: Peer, kind: str) -> None:
    """Cheap to send, dear to serve: so many at once, and so many per second."""
    server = RecordingMux()
    server.feed(peer.hello() + peer.connect(1))
    for second in range(1, 60):
        server.feed(FLOODS[kind] * 100, now=float(second))
    with pytest.raises(H2Error, match="flood") as caught:
        server.feed(FLOODS[kind] * 3000, now=60.0)
    assert caught.value.code == 11


def test_rapid_resets_are_cut_off(server: RecordingMux, peer: Peer) -> None:
    """CVE-2023-44487."""
    data = b"".join(peer.connect(i) + peer.reset(i) for i in range(1, 2000, 2))
    with pytest.raises(H2Error, match="rapid RST_STREAM"):
        server.feed(data)


def test_streams_that_carried_data_may_be_reset_at_any_rate(
    server: RecordingMux, peer: Peer
) -> None:
    for stream_id in range(1, 5000, 2):
        server.feed(peer.connect(stream_id) + peer.data(stream_id, b"x") + peer.reset(stream_id))
    assert len(server.requests) == 2500
