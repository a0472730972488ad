"""HTTP/2 inside a decrypted HBONE connection: the header fields of requests and responses."""

from __future__ import annotations

from collections.abc import Iterator

from hpack import Decoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frames(data: bytes) -> Iterator[Frame]:
    """Every complete frame of one direction."""
    offset = len(PREFACE) if data.startswith(PREFACE) else 0
    while offset + 9 <= len(data):
        frame, length = Frame.parse_frame_header(memoryview(data)[offset : offset + 9])
        end = offset + 9 + length
        if end > len(data):
            return
        frame.parse_body(memoryview(data)[offset + 9 : end])
        yield frame
        offset = end


def headers(data: bytes) -> list[tuple[int, dict[str, str]]]:
    """Stream id and fields of every header block of one direction."""
    decoder = Decoder()
    found = []
    block = b""
    for frame in frames(data):
        if not isinstance(frame, HeadersFrame | ContinuationFrame):
            continue
        block += frame.data
        if "END_HEADERS" in frame.flags:
            fields = {_text(name): _text(value) for name, value in decoder.decode(block)}
            found.append((frame.stream_id, fields))
            block = b""
    return found


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def requests(client_data: bytes) -> list[dict[str, str]]:
    """Fields of every request a client sent; fails when it does not speak HTTP/2."""
    if client_data and not client_data.startswith(PREFACE):
        raise AssertionError(f"no HTTP/2 preface but {client_data[:40]!r}")
    return [fields for _, fields in headers(client_data)]


def stream_data(data: bytes) -> dict[int, bytes]:
    """What the DATA frames of one direction carried, by stream id."""
    carried: dict[int, bytes] = {}
    for frame in frames(data):
        if isinstance(frame, DataFrame):
            carried[frame.stream_id] = carried.get(frame.stream_id, b"") + frame.data
    return carried
