"""A peer of the HBONE mux that is made of frames: builds its side, reads ours."""

from __future__ import annotations

import struct

from hpack import Encoder
from hyperframe.frame import Frame

from metalmesh.hbone.buffers import Shared
from metalmesh.hbone.frames import FRAME_HEADER, Limits
from metalmesh.hbone.mux import Mux
from metalmesh.hbone.stream import Stream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame, well formed or not."""
    return FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


class Peer:
    """Builds the other side's frames."""

    def __init__(self) -> None:
        self.encoder = Encoder()

    @staticmethod
    def hello(*, client: bool = True, **values: int) -> bytes:
        """Preface (of a client) and SETTINGS; values by ``id_N=value``."""
        pairs = b"".join(struct.pack(">HI", int(k[3:]), v) for k, v in values.items())
        return (PREFACE if client else b"") + frame(4, 0, 0, pairs)

    def headers(self, stream_id: int, *fields: tuple[str, str], end: bool = False) -> bytes:
        """HEADERS in one frame."""
        return frame(1, 4 | end, stream_id, self.encoder.encode(list(fields)))

    def connect(
        self, stream_id: int, authority: str = "10.0.0.1:80", *more: tuple[str, str]
    ) -> bytes:
        """A CONNECT request."""
        return self.headers(stream_id, (":method", "CONNECT"), (":authority", authority), *more)

    @staticmethod
    def data(stream_id: int, payload: bytes, *, end: bool = False) -> bytes:
        """DATA."""
        return frame(0, int(end), stream_id, payload)

    @staticmethod
    def window(stream_id: int, increment: int) -> bytes:
        """WINDOW_UPDATE."""
        return frame(8, 0, stream_id, struct.pack(">I", increment))

    @staticmethod
    def reset(stream_id: int, code: int = 8) -> bytes:
        """RST_STREAM."""
        return frame(3, 0, stream_id, struct.pack(">I", code))

    @staticmethod
    def goaway(last: int, code: int = 0) -> bytes:
        """GOAWAY."""
        return frame(7, 0, 0, struct.pack(">II", last, code))


class RecordingStream(Stream):
    """Keeps what is delivered; takes it all at once unless told not to."""

    def __init__(self, *, reads: bool = True) -> None:
        super().__init__()
        self.got = bytearray()
        self.held = 0
        self.events: list[str] = []
        self.reads = reads

    def deliver(self) -> None:
        """Take the data (or hold it) and credit it."""
        size = sum(map(len, self.chunks))
        for chunk in self.chunks:
            self.got += chunk
        self.chunks.clear()
        assert self.mux is not None
        if self.reads:
            self.mux.credit_stream(self, size)
        else:
            self.held += size
            self.mux.hold(size)
        if self.remote_end:
            self.events.append("end")

    def drain(self) -> None:
        """Take what was held."""
        assert self.mux is not None
        size, self.held = self.held, 0
        self.mux.credit_stream(self, size)
        self.mux.hold(-size)

    def on_response(self, status: str, headers: object) -> None:
        """Record the answer."""
        self.events.append(f"status {status}")

    def resume(self) -> None:
        """Record it."""
        self.events.append("resume")

    def on_reset(self, code: int) -> None:
        """Record it."""
        self.events.append(f"reset {code}")
        self.mux = None


class RecordingMux(Mux):
    """The mux under test, its output in memory."""

    def __init__(self, *, client: bool = False, limits: Limits | None = None, **hold: bool) -> None:
        super().__init__(client=client, limits=limits or Limits(max_streams=200), shared=Shared())
        self._reads = hold.get("reads", True)
        self._plain = memoryview(bytearray(1 << 20))
        self.sent = bytearray()
        self.requests: list[tuple[int, dict[str, str]]] = []
        self.events: list[str] = []
        self.start()

    def mark_dirty(self) -> None:
        """Output is fetched by the test."""
        self.dirty = True

    def flush_output(self) -> None:
        """Move the buffer to ``sent``."""
        if self.out is not None:
            self.sent += self.out.data[: self.out_used]
            self.out_used = 0

    def on_request(self, stream_id: int, headers: dict[str, str], ended: bool) -> None:
        """Accept everything."""
        self.requests.append((stream_id, headers))
        stream = RecordingStream(reads=self._reads)
        self.adopt(stream, stream_id, ended=ended)
        self.accept(stream, b"\x88")

    def on_goaway(self, code: int, debug: bytes) -> None:
        """Record it."""
        self.events.append(f"goaway {code}")

    def on_settings(self) -> None:
        """Record it."""
        self.events.append("settings")

    def on_idle(self) -> None:
        """Record it."""
        self.events.append("idle")

    def feed(self, data: bytes, now: float = 0.0, cut: int = 1 << 19) -> None:
        """Receive in pieces of ``cut`` bytes."""
        for start in range(0, len(data), cut):
            piece = self.leftover + data[start : start + cut]
            self._plain[: len(piece)] = piece
            self.receive(self._plain, len(piece), now)

    def take(self) -> bytes:
        """What was sent since the last call."""
        self.flush_output()
        data, self.sent = bytes(self.sent), bytearray()
        return data

    def frames(self) -> list[str]:
        """What was sent since the last call, a frame each, as ``KIND stream flags payload``."""
        return describe(self.take())


def describe(data: bytes) -> list[str]:
    """Frames as short texts, through an independent parser."""
    data = data.removeprefix(PREFACE)
    found = []
    while data:
        parsed, size = Frame.parse_frame_header(memoryview(data)[:9])
        parsed.parse_body(memoryview(data)[9 : 9 + size])
        found.append(_text(parsed))
        data = data[9 + size :]
    return found


def _text(item: Frame) -> str:
    flags = "+".join(sorted(item.flags))
    name = type(item).__name__.removesuffix("Frame")
    detail = {
        "WindowUpdate": lambda: str(item.window_increment),
        "RstStream": lambda: str(item.error_code),
        "GoAway": lambda: f"{item.last_stream_id} {item.error_code}",
        "Data": lambda: str(len(item.data)),
        "Settings": lambda: str(dict(sorted(item.settings.items()))) if item.settings else "",
        "Ping": lambda: item.opaque_data.hex(),
    }.get(name, lambda: "")()
    return " ".join(part for part in (name, str(item.stream_id), flags, detail) if part)
