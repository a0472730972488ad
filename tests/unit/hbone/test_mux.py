"""One connection: streams open, carry data, end; what a peer must not do ends it."""

from __future__ import annotations

import struct

import pytest

from metalmesh.hbone.frames import H2Error, Limits
from tests.support.h2_frames import Peer, RecordingMux, RecordingStream, frame

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


@pytest.fixture
def client(peer: Peer) -> RecordingMux:
    """A client that has had the server's hello."""
    mux = RecordingMux(client=True)
    mux.feed(peer.hello(client=False))
    mux.take()
    return mux


def opened(client: RecordingMux, peer: Peer) -> RecordingStream:
    """A stream of the client whose CONNECT was answered with 200."""
    stream = RecordingStream()
    client.open_stream(stream, b"\x02\x07CONNECT")
    client.feed(peer.headers(stream.stream_id, (":status", "200")))
    client.take()
    return stream


def stream_of(server: RecordingMux, stream_id: int = 1) -> RecordingStream:
    stream = server.streams[stream_id]
    assert isinstance(stream, RecordingStream)
    return stream


# --- hello
def test_server_announces_its_limits() -> None:
    """No dynamic table, windows of 4 and 16 MiB, 200 streams (istio-facts 2.4)."""
    assert RecordingMux().frames() == [
        "Settings 0 {1: 0, 3: 200, 4: 4194304, 5: 1048576, 6: 65536}",
        f"WindowUpdate 0 {(16 << 20) - 65535}",
    ]


def test_client_announces_no_push_after_the_preface() -> None:
    mux = RecordingMux(client=True)
    sent = mux.take()
    assert sent.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert struct.pack(">HI", 2, 0) in sent


def test_preface_and_settings_may_come_byte_by_byte(peer: Peer) -> None:
    mux = RecordingMux()
    mux.feed(peer.hello() + peer.connect(1), cut=1)
    assert mux.requests == [(1, {":method": "CONNECT", ":authority": "10.0.0.1:80"})]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r"])
def test_other_protocol_is_refused_at_its_first_byte(data: bytes) -> None:
    with pytest.raises(H2Error, match="http2 handshake failed"):
        RecordingMux().feed(data)


def test_first_frame_must_be_settings(peer: Peer) -> None:
    with pytest.raises(H2Error, match="before SETTINGS"):
        RecordingMux().feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(6, 0, 0, bytes(8)))


# --- streams
def test_request_is_accepted_and_data_flows_both_ways(server: RecordingMux, peer: Peer) -> None:
    server.feed(
        peer.connect(1, "10.0.0.1:80") + peer.data(1, b"hello") + peer.data(1, b"", end=True)
    )
    stream = stream_of(server)
    assert bytes(stream.got) == b"hello"
    assert stream.events == ["end"]
    server.end_stream(stream)
    assert server.frames() == ["Headers 1 END_HEADERS", "Data 1 END_STREAM 0"]
    assert server.streams == {}
    assert server.events == ["settings", "idle"]


def test_data_is_delivered_once_per_call_and_uncopied(server: RecordingMux, peer: Peer) -> None:
    server.feed(peer.connect(1))
    server.feed(b"".join(peer.data(1, bytes([i]) * 100) for i in range(20)))
    assert bytes(stream_of(server).got) == b"".join(bytes([i]) * 100 for i in range(20))


@pytest.mark.parametrize("cut", [1, 2, 7, 9, 10, 64])
def test_frames_may_be_cut_anywhere(server: RecordingMux, peer: Peer, cut: int) -> None:
    data = bytes(range(256)) * 3
    server.feed(peer.connect(1) + peer.data(1, data) + peer.data(1, data, end=True), cut=cut)
    assert bytes(stream_of(server).got) == data * 2


def test_padded_data_counts_and_is_unpadded(server: RecordingMux, peer: Peer) -> None:
    server.feed(peer.connect(1))
    before = stream_of(server).recv_window, server.recv_window
    server.feed(frame(0, 8, 1, b"\x05" + b"hello" + bytes(5)))
    stream = stream_of(server)
    assert bytes(stream.got) == b"hello"
    assert before == (stream.recv_window + 11, server.recv_window + 11)
    assert stream.uncredited == 11


def test_header_block_may_continue(server: RecordingMux, peer: Peer) -> None:
    block = peer.encoder.encode([(":method", "CONNECT"), (":authority", "10.0.0.1:80")])
    server.feed(frame(1, 0, 1, block[:3]) + frame(9, 0, 1, block[3:5]) + frame(9, 4, 1, block[5:]))
    assert server.requests[0][1][":authority"] == "10.0.0.1:80"
    server.feed(peer.data(1, b"x"))  # frames of other kinds are allowed again
    assert bytes(stream_of(server).got) == b"x"


def test_priority_and_padding_of_headers_are_skipped(server: RecordingMux, peer: Peer) -> None:
    block = peer.encoder.encode([(":method", "CONNECT"), (":authority", "10.0.0.1:80")])
    server.feed(frame(1, 4 | 8 | 32, 1, b"\x02" + bytes(5) + block + bytes(2)))
    assert server.requests[0][1][":method"] == "CONNECT"


def test_reset_of_the_peer_ends_the_stream(server: RecordingMux, peer: Peer) -> None:
    server.feed(peer.connect(1) + peer.data(1, b"x") + peer.reset(1, 10))
    assert server.streams == {}


def test_trailers_end_the_stream(server: RecordingMux, peer: Peer) -> None:
    server.feed(peer.connect(1) + peer.headers(1, ("x", "y"), end=True))
    assert stream_of(server).remote_end


def test_streams_beyond_the_limit_are_refused(peer: Peer) -> None:
    server = RecordingMux(limits=SMALL)
    server.feed(peer.hello() + b"".join(peer.connect(i) for i in (1, 3, 5, 7)))
    assert "RstStream 7 7" in server.frames()
    assert sorted(server.streams) == [1, 3, 5]


def test_malformed_request_is_reset_alone(server: RecordingMux, peer: Peer) -> None:
    bad = peer.headers(1, (":method", "CONNECT"), (":method", "CONNECT"))
    server.feed(bad + peer.connect(3))
    assert "RstStream 1 1" in server.frames()
    assert list(server.streams) == [3]


def test_client_opens_and_is_answered(client: RecordingMux, peer: Peer) -> None:
    stream = opened(client, peer)
    assert stream.events == ["status 200"]
    client.feed(peer.data(1, b"x", end=True))
    assert stream.events == ["status 200", "end"]


def test_informational_answer_is_not_the_answer(client: RecordingMux, peer: Peer) -> None:
    stream = RecordingStream()
    client.open_stream(stream, b"\x02\x07CONNECT")
    client.feed(peer.headers(1, (":status", "103")) + peer.headers(1, (":status", "200")))
    assert stream.events == ["status 200"]


def test_refusal_reaches_the_stream(client: RecordingMux, peer: Peer) -> None:
    stream = RecordingStream()
    client.open_stream(stream, b"\x02\x07CONNECT")
    client.feed(peer.headers(1, (":status", "401"), end=True))
    assert stream.events[0] == "status 401"
    assert not stream.opened


def test_client_keeps_to_the_servers_stream_limit(peer: Peer) -> None:
    client = RecordingMux(client=True, limits=Limits(max_streams=100))
    client.feed(peer.hello(client=False, id_3=2))
    for _ in range(2):
        assert client.has_room
        client.open_stream(RecordingStream(), b"\x02\x07CONNECT")
    assert not client.has_room


# --- windows
def test_consumed_data_is_credited_at_half_a_window(peer: Peer) -> None:
    server = RecordingMux(limits=SMALL)
    server.feed(peer.hello() + peer.connect(1))
    server.take()
    server.feed(peer.data(1, bytes(499)))
    assert server.frames() == []
    server.feed(peer.data(1, bytes(1)))
    assert server.frames() == ["WindowUpdate 1 500"]


def test_unread_stream_does_not_starve_its_siblings(peer: Peer) -> None:
    """The connection's window is credited on receipt, whoever reads or not."""
    limits = Limits(max_streams=200, stream_window=60_000, connection_window=65_535)
    server = RecordingMux(limits=limits, reads=False)
    server.feed(peer.hello())
    for stream_id in range(1, 100, 2):  # 50 streams that nobody reads, 3 MB
        server.feed(peer.connect(stream_id) + peer.data(stream_id, bytes(60_000)))
    assert server.held == 50 * 60_000
    assert server.recv_window > 16_000
    server.feed(peer.connect(101) + peer.data(101, b"alive"))
    assert bytes(stream_of(server, 101).got) == b"alive"


def test_hog_waits_when_memory_is_short(peer: Peer) -> None:
    """Beyond the process's budget no further connection credit; it comes back with reading."""
    limits = Limits(max_streams=200, stream_window=60_000, connection_window=65_535)
    server = RecordingMux(limits=limits, reads=False)
    server.budget.limit, server.budget.fair = 100_000, 10_000
    server.feed(peer.hello() + peer.connect(1) + peer.data(1, bytes(60_000)))
    assert "WindowUpdate 0 60000" in server.frames()
    server.feed(peer.connect(3) + peer.data(3, bytes(60_000)))
    assert not [item for item in server.frames() if item.startswith("WindowUpdate 0")]
    stream_of(server, 1).drain()
    assert "WindowUpdate 0 60000" in server.frames()
    stream_of(server, 3).drain()
    assert server.budget.used == 0


def test_sender_blocks_and_resumes_by_stream(client: RecordingMux, peer: Peer) -> None:
    stream = opened(client, peer)
    stream.send_window = 0
    client.block(stream)
    client.feed(peer.window(0, 1000))
    assert "resume" not in stream.events
    client.feed(peer.window(1, 1000))
    assert stream.events[-1] == "resume"
    assert stream.send_window == 1000


def test_sender_blocks_and_resumes_by_connection(client: RecordingMux, peer: Peer) -> None:
    stream = opened(client, peer)
    client.send_window = 0
    client.block(stream)
    client.feed(peer.window(1, 1000))
    assert "resume" not in stream.events
    client.feed(peer.window(0, 1000))
    assert stream.events[-1] == "resume"


def test_settings_change_the_windows_of_open_streams(client: RecordingMux, peer: Peer) -> None:
    stream = opened(client, peer)
    stream.send_window = 0
    client.block(stream)
    client.feed(peer.hello(client=False, id_4=65535 + 10))
    assert stream.send_window == 10
    assert stream.events[-1] == "resume"
    client.feed(peer.hello(client=False, id_4=0))
    assert stream.send_window == -65535


# --- keepalive and ends
def test_ping_is_answered(server: RecordingMux) -> None:
    server.feed(frame(6, 0, 0, b"12345678"))
    assert server.frames() == [f"Ping 0 ACK {b'12345678'.hex()}"]


def test_silent_peer_is_declared_dead_after_20_seconds(server: RecordingMux) -> None:
    assert server.check_alive(10.0)
    assert server.check_alive(20.0)
    assert not server.check_alive(30.0)


def test_answering_peer_stays_alive(server: RecordingMux) -> None:
    assert server.check_alive(10.0)
    ping = server.take()
    server.feed(frame(6, 1, 0, ping[9:]), now=10.1)
    assert server.check_alive(31.0)
    assert server.frames()[0].startswith("Ping 0")


def test_drain_announces_then_names_the_last_stream(server: RecordingMux, peer: Peer) -> None:
    """GOAWAY of all ids, then, once the peer has surely seen it, GOAWAY of the last one."""
    server.feed(peer.connect(1))
    server.take()
    server.drain()
    server.drain()
    first, ping = server.frames()
    assert first == f"GoAway 0 {(1 << 31) - 1} 0"
    server.feed(peer.connect(3))  # was on its way
    assert 3 in server.streams
    server.take()
    server.feed(frame(6, 1, 0, bytes.fromhex(ping.split()[-1])))
    assert server.frames() == ["GoAway 0 3 0"]
    server.feed(peer.connect(5))
    assert 5 not in server.streams


def test_goaway_of_the_server_resets_what_it_will_not_serve(
    client: RecordingMux, peer: Peer
) -> None:
    first, second = opened(client, peer), RecordingStream()
    client.open_stream(second, b"\x02\x07CONNECT")
    client.feed(peer.goaway(1))
    assert second.events == ["reset 7"]
    assert "reset 7" not in first.events
    assert not client.has_room
    assert client.events[-1] == "goaway 0"


def test_lost_connection_resets_every_stream(client: RecordingMux, peer: Peer) -> None:
    streams = [opened(client, peer) for _ in range(3)]
    client.fail_streams(10)
    assert all(stream.events[-1] == "reset 10" for stream in streams)
    client.emit(b"")  # late output does no harm
