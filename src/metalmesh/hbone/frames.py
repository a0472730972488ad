"""HTTP/2 frames: numbers of RFC 9113, builders for the small ones, and the error class."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from metalmesh.errors import ProtocolError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
MAX_WINDOW: Final = 0x7FFFFFFF
MAX_STREAM_ID: Final = 0x7FFFFFFF
DEFAULT_WINDOW: Final = 65535
DEFAULT_FRAME_BYTES: Final = 16384

# frame types
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# flags
END_STREAM: Final = 1
ACK: Final = 1
END_HEADERS: Final = 4
PADDED: Final = 8
PRIORITY_FLAG: Final = 32

# settings
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

# error codes
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
CONNECT_ERROR: Final = 10
ENHANCE_YOUR_CALM: Final = 11

#: first word is ``length << 8 | type``, then flags and stream id
FRAME_HEADER: Final = struct.Struct(">IBI")
_SETTING: Final = struct.Struct(">HI")
_WORD_FRAME: Final = struct.Struct(">IBII")


class H2Error(ProtocolError):
    """The peer broke HTTP/2; the connection must end with GOAWAY(``code``)."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one connection grants and tolerates; bytes and counts (istio-facts 2.4)."""

    #: streams the peer may have open at once (as server), or we open at most (as client)
    max_streams: int
    #: receive window of a stream, as in Istio; with 1 MiB one download alone stays 9 % slower
    stream_window: int = 4 << 20
    #: receive window of the connection. It is credited on receipt, so that streams nobody
    #: reads cannot starve their siblings; the bound on memory is ``Budget``.
    connection_window: int = 16 << 20
    #: longest DATA frame accepted; large frames mean fewer headers per byte
    max_frame: int = 1 << 20
    #: longest frame of any other kind: they are held in memory whole
    max_control_frame: int = 65536
    #: longest header block, CONTINUATION included, and longest decoded header list
    max_header_bytes: int = 65536
    #: frames that cost us more than their sender (PING, SETTINGS, empty DATA, CONTINUATION,
    #: refused or immediately reset streams; CVE-2019-9512, -9515, -9518, CVE-2023-44487):
    #: so many at once, and so many per second
    flood_burst: int = 2000
    flood_per_second: int = 500
    #: consecutive PINGs and how long one may stay unanswered, seconds
    ping_interval: float = 10.0
    ping_timeout: float = 20.0


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    return FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return _WORD_FRAME.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return _WORD_FRAME.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + debug[:256])


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The pairs of a SETTINGS frame, with the ranges of RFC 9113 section 6.5.2 enforced."""
    if len(payload) % 6:
        raise H2Error(FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes is not a list of pairs")
    pairs: list[tuple[int, int]] = list(_SETTING.iter_unpack(payload))
    for key, value in pairs:
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise H2Error(FLOW_CONTROL_ERROR, f"SETTINGS: initial window {value} is too large")
        if key == MAX_FRAME_SIZE and not DEFAULT_FRAME_BYTES <= value <= 0xFFFFFF:
            raise H2Error(PROTOCOL_ERROR, f"SETTINGS: frame size {value} is out of range")
        if key == ENABLE_PUSH and value > 1:
            raise H2Error(PROTOCOL_ERROR, f"SETTINGS: push must be 0 or 1, not {value}")
    return pairs


def unpad(payload: bytes) -> bytes:
    """The content of a padded DATA or HEADERS frame."""
    if not payload or payload[0] >= len(payload):
        raise H2Error(PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]
