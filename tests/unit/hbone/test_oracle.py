"""Against the ``h2`` library: the same conversation, whoever plays which part."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import ProtocolError
from metalmesh.hbone.frames import Limits
from metalmesh.hbone.headers import connect_block, connect_prefix
from tests.support.h2_frames import PREFACE, Peer, RecordingMux, RecordingStream, frame

CONNECT = [(":method", "CONNECT"), (":authority", "10.0.0.1:80"), ("baggage", "a=b")]


class Oracle:
    """An ``h2`` connection wired to a mux."""

    def __init__(self, mux: RecordingMux) -> None:
        self.mux = mux
        self.h2 = H2Connection(H2Configuration(client_side=not mux.client))
        self.h2.initiate_connection()
        self.events: list[Event] = []
        self.exchange()

    def exchange(self, cut: int = 1 << 19) -> list[Event]:
        """Carry bytes both ways until nothing is left; the oracle's new events."""
        new: list[Event] = []
        while True:
            out = self.h2.data_to_send()
            if out:
                self.mux.feed(out, cut=cut)
            answer = self.mux.take()
            if answer:
                new += self.h2.receive_data(answer)
                for event in new:
                    if isinstance(event, DataReceived) and event not in self.events:
                        self.h2.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
                        self.events.append(event)
            if not out and not answer:
                return new


def kinds(events: list[Event], kind: type) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("cut", [1, 13, 1 << 19])
def test_h2_client_is_served(cut: int) -> None:
    """Requests, data with padding, pings and half-close of a foreign client."""
    mux = RecordingMux()
    oracle = Oracle(mux)
    assert oracle.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] == 200
    for stream_id in (1, 3, 5):
        oracle.h2.send_headers(stream_id, CONNECT)
    events = oracle.exchange(cut)
    assert len(kinds(events, ResponseReceived)) == 3
    assert [headers[":authority"] for _, headers in mux.requests] == ["10.0.0.1:80"] * 3
    oracle.h2.send_data(1, b"x" * 10_000, pad_length=200)
    oracle.h2.send_data(3, b"y" * 10_000, end_stream=True)
    oracle.h2.ping(b"12345678")
    assert kinds(oracle.exchange(cut), PingAckReceived)
    one, three = mux.streams[1], mux.streams[3]
    assert isinstance(one, RecordingStream)
    assert isinstance(three, RecordingStream)
    assert (bytes(one.got), bytes(three.got)) == (b"x" * 10_000, b"y" * 10_000)
    assert three.remote_end
    mux.end_stream(three)
    mux.reset_stream(one, 10)
    events = oracle.exchange(cut)
    assert kinds(events, StreamEnded)
    assert kinds(events, StreamReset)[0].error_code == 10
    assert list(mux.streams) == [5]


def test_h2_server_is_understood() -> None:
    """Our requests are read by a foreign server, and its answers by us."""
    mux = RecordingMux(client=True)
    oracle = Oracle(mux)
    stream = RecordingStream()
    prefix = connect_prefix("10.0.0.1:80", "k8s.namespace.name=a")
    mux.open_stream(stream, connect_block(prefix, 'for="10.0.0.2:5"', "00-x"))
    (request,) = (e for e in oracle.exchange() if type(e).__name__ == "RequestReceived")
    fields = {bytes(name): bytes(value) for name, value in request.headers}
    assert fields[b":method"] == b"CONNECT"
    assert fields[b"baggage"] == b"k8s.namespace.name=a"
    assert b":path" not in fields
    oracle.h2.send_headers(1, [(":status", "200"), ("baggage", "c=d")])
    oracle.exchange()
    assert stream.events == ["status 200"]
    oracle.h2.send_data(1, b"z" * 16_000, end_stream=True)
    oracle.exchange()
    assert bytes(stream.got) == b"z" * 16_000
    mux.end_stream(stream)
    assert kinds(oracle.exchange(), StreamEnded)
    assert mux.streams == {}


def test_megabytes_from_h2_are_credited_in_time() -> None:
    """The oracle enforces our windows: it would raise if we credited too little."""
    limits = Limits(max_streams=10, stream_window=50_000, connection_window=100_000)
    mux = RecordingMux(limits=limits)
    oracle = Oracle(mux)
    oracle.h2.send_headers(1, CONNECT)
    oracle.exchange()
    left = 3_000_000
    while left:
        size = min(left, oracle.h2.local_flow_control_window(1), 16_384)
        assert size > 0, "stalled"
        oracle.h2.send_data(1, bytes(size))
        left -= size
        oracle.exchange()
    stream = mux.streams[1]
    assert isinstance(stream, RecordingStream)
    assert len(stream.got) == 3_000_000


def test_drain_is_graceful_for_h2() -> None:
    """Two GOAWAYs; the open stream goes on in between and after."""
    mux = RecordingMux()
    oracle = Oracle(mux)
    oracle.h2.send_headers(1, CONNECT)
    oracle.exchange()
    mux.drain()
    out = mux.take()
    assert out.count(struct.pack(">I", 0x7FFFFFFF)) == 1
    stream = mux.streams[1]
    assert stream.mux is mux


def _conversation(seed: int) -> bytes:
    """A legal but arbitrary client: several streams, data of all sizes, resets and ends."""
    dice = random.Random(seed)
    peer = Peer()
    out = [peer.hello()]
    alive: list[int] = []
    for stream_id in range(1, 20, 2):
        out.append(peer.connect(stream_id))
        alive.append(stream_id)
        for _ in range(dice.randrange(4)):
            chosen = dice.choice(alive)
            out.append(peer.data(chosen, bytes(dice.randrange(3000))))
        if dice.random() < 0.3:
            out.append(peer.data(alive.pop(0), b"", end=True))
        elif dice.random() < 0.3:
            out.append(peer.reset(alive.pop()))
        if not alive:
            break
    return b"".join(out)


@pytest.mark.parametrize("seed", range(10))
def test_cutting_changes_nothing(seed: int) -> None:
    """However the bytes are cut, the same requests and the same data."""
    data = _conversation(seed)
    results = []
    for cut in (1, 17, 1 << 19):
        mux = RecordingMux()
        mux.feed(data, cut=cut)
        results.append(
            (
                mux.requests,
                {i: (bytes(s.got), s.remote_end) for i, s in mux.streams.items()},  # type: ignore[attr-defined]
                mux.take(),
            )
        )
    assert results[0] == results[1] == results[2]


@given(st.binary(max_size=300), st.booleans())
def test_only_protocol_error_escapes_from_garbage(data: bytes, client: bool) -> None:
    mux = RecordingMux(client=client)
    with contextlib.suppress(ProtocolError):
        mux.feed((b"" if client else PREFACE) + frame(4, 0, 0) + data)


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=40),
)


@given(st.lists(FRAMES, max_size=30), st.booleans(), st.integers(1, 50))
def test_only_protocol_error_escapes_from_frames(
    frames: list[bytes], client: bool, cut: int
) -> None:
    """Well-formed frames in any order with any flags."""
    peer = Peer()
    mux = RecordingMux(client=client)
    mux.feed(peer.hello(client=not client))
    if client:
        mux.open_stream(RecordingStream(), b"\x02\x07CONNECT")
    else:
        mux.feed(peer.connect(1))
    with contextlib.suppress(ProtocolError):
        mux.feed(b"".join(frames), cut=cut)
    assert len(mux.streams) <= mux.limits.max_streams
