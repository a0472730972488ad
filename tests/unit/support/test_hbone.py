"""Header blocks that span frames, and clients that do not speak HTTP/2."""

from __future__ import annotations

import pytest
from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, SettingsFrame

from tests.support import hbone

FIELDS = [(":method", "CONNECT"), (":authority", "10.0.0.2:8080"), ("baggage", "x" * 90)]


def conversation() -> bytes:
    """A request whose header block is cut in two, its data, and a second request."""
    encoder = Encoder()
    first, second = encoder.encode(FIELDS), encoder.encode(FIELDS)
    frames = [
        SettingsFrame(0),
        HeadersFrame(1, data=first[:10]),
        ContinuationFrame(1, data=first[10:], flags=["END_HEADERS"]),
        DataFrame(1, data=b"one "),
        HeadersFrame(3, data=second, flags=["END_HEADERS"]),
        DataFrame(3, data=b"other"),
        DataFrame(1, data=b"stream"),
    ]
    return hbone.PREFACE + b"".join(frame.serialize() for frame in frames)


def test_requests_and_their_data_are_told_apart() -> None:
    """The decoder's table lives as long as the connection."""
    assert hbone.requests(conversation()) == [dict(FIELDS), dict(FIELDS)]
    assert hbone.stream_data(conversation()) == {1: b"one stream", 3: b"other"}


def test_recording_that_ends_within_a_frame_is_read_up_to_it() -> None:
    """The last frame of a running connection is often cut."""
    assert hbone.requests(conversation()[:-3]) == [dict(FIELDS), dict(FIELDS)]
    assert hbone.stream_data(conversation()[:-3]) == {1: b"one ", 3: b"other"}


def test_something_else_than_http2_is_an_error() -> None:
    """A tunnel of another kind must not look like one without requests."""
    with pytest.raises(AssertionError, match="no HTTP/2 preface"):
        hbone.requests(b"GET / HTTP/1.1\r\n")
