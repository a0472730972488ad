"""The receiving half of a connection: cutting decrypted bytes into frames.

DATA payload is never copied: streams get views of the receive buffer, once per call, whatever
the number of frames (performance: objects per frame would cost three times the throughput).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from metalmesh.hbone import frames as fr
from metalmesh.hbone.writer import FrameWriter

if TYPE_CHECKING:
    from metalmesh.hbone.buffers import Shared
    from metalmesh.hbone.stream import Stream

_UNPACK = fr.FRAME_HEADER.unpack_from


class FrameReader(FrameWriter):
    """Input of one connection."""

    __slots__ = (
        "_data_end",
        "_data_left",
        "_data_stream",
        "_flood_at",
        "_flood_tokens",
        "_touched",
        "_wants_preface",
        "leftover",
    )

    def __init__(self, *, client: bool, limits: fr.Limits, shared: Shared) -> None:
        super().__init__(client=client, limits=limits, shared=shared)
        #: incomplete frame (or preface) of the last call; the owner puts it before new bytes
        self.leftover = b""
        self._wants_preface = not client
        # the DATA frame being read, which may span calls
        self._data_left = 0
        self._data_end = False
        self._data_stream: Stream | None = None
        self._touched: list[Stream] = []
        self._flood_tokens = float(limits.flood_burst)
        self._flood_at = 0.0

    def _handle_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any frame but unpadded DATA."""
        raise NotImplementedError

    def _begin_data(self, stream_id: int, size: int, flags: int) -> Stream | None:
        """The header of a DATA frame: charge the windows; sets the stream the payload is for."""
        raise NotImplementedError

    def receive(self, view: memoryview, end: int, now: float) -> None:
        """Take ``view[:end]``, which starts with ``leftover``; H2Error if the peer is broken."""
        self.now = now
        position = self._read_preface(view, end) if self._wants_preface else 0
        if self._wants_preface:
            return
        left, touched = self._data_left, self._touched
        while True:
            if left:
                take = min(left, end - position)
                if take == 0:
                    break
                stream = self._data_stream
                if stream is not None:
                    stream.chunks.append(view[position : position + take])
                    if not stream.touched:
                        stream.touched = True
                        touched.append(stream)
                position += take
                left -= take
                if left == 0 and self._data_end and stream is not None:
                    self.remote_ended(stream)
                continue
            if end - position < fr.HEADER_BYTES:
                break
            word, flags, stream_id = _UNPACK(view, position)
            if word & 255 == fr.DATA and not flags & fr.PADDED:
                position += fr.HEADER_BYTES
                left = word >> 8
                self._begin_data(stream_id & fr.MAX_STREAM_ID, left, flags)
                continue
            start = position + fr.HEADER_BYTES
            if end < self._control_end(start, word >> 8):
                break
            position = start + (word >> 8)
            payload = bytes(view[start:position])
            self._handle_control(word & 255, flags, stream_id & fr.MAX_STREAM_ID, payload)
        self._data_left = left
        self.leftover = bytes(view[position:end]) if position < end else b""
        self._deliver()

    def _control_end(self, start: int, size: int) -> int:
        if size > self.limits.max_control_frame:
            raise fr.H2Error(fr.FRAME_SIZE_ERROR, f"frame of {size} bytes is too long")
        return start + size

    def _read_preface(self, view: memoryview, end: int) -> int:
        size = len(fr.PREFACE)
        got = bytes(view[: min(end, size)])
        if got != fr.PREFACE[: len(got)]:
            raise fr.H2Error(
                fr.PROTOCOL_ERROR, f"http2 handshake failed: not an HTTP/2 preface: {got[:24]!r}"
            )
        if end < size:
            self.leftover = got
            return 0
        self._wants_preface = False
        return size

    def _empty_data(self, stream: Stream) -> None:
        if self._data_end:
            self.remote_ended(stream)
        else:
            self.charge_flood(1, "empty DATA")

    def _deliver(self) -> None:
        """Hand every stream its chunks, then credit the connection."""
        touched = self._touched
        if touched:
            self._touched = []
            for stream in touched:
                stream.touched = False
                if stream.mux is not None:
                    stream.deliver()
                stream.chunks.clear()
        if self.recv_uncredited >= self.limits.connection_window >> 2 and not self.closed:
            self._credit_connection()

    def touch(self, stream: Stream) -> None:
        """The stream gets a ``deliver`` at the end of this call."""
        if not stream.touched:
            stream.touched = True
            self._touched.append(stream)

    def remote_ended(self, stream: Stream) -> None:
        """The peer closed its direction."""
        if stream.remote_end:
            return
        stream.remote_end = True
        self.touch(stream)
        if stream.local_end:
            self.forget(stream)

    def charge_flood(self, cost: int, what: str) -> None:
        """Count frames that cost us more than their sender; too many end the connection."""
        limits = self.limits
        tokens = self._flood_tokens + (self.now - self._flood_at) * limits.flood_per_second
        self._flood_tokens = min(tokens, float(limits.flood_burst)) - cost
        self._flood_at = self.now
        if self._flood_tokens < 0:
            raise fr.H2Error(fr.ENHANCE_YOUR_CALM, f"flood of {what} frames")
