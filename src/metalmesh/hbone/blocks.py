"""Putting header blocks together, and the order of frames that goes with it.

A block may continue in further frames, and nothing may come between them (RFC 9113 section
4.3); likewise the very first frame must be SETTINGS. Both are bounded and checked here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.hbone import frames as fr
from metalmesh.hbone.reader import FrameReader

if TYPE_CHECKING:
    from metalmesh.hbone.buffers import Shared

#: frames of one block; an honest peer needs a handful (CVE-2024-27316 and its kin)
_MAX_BLOCK_FRAMES: Final = 32


class BlockReader(FrameReader):
    """HEADERS and CONTINUATION of one connection."""

    __slots__ = ("_block", "_block_flags", "_block_frames", "_block_stream", "_ordered")

    def __init__(self, *, client: bool, limits: fr.Limits, shared: Shared) -> None:
        super().__init__(client=client, limits=limits, shared=shared)
        self._block = b""
        self._block_flags = 0
        self._block_frames = 0
        #: stream of the block that is not complete yet, else 0
        self._block_stream = 0
        #: only one kind of frame is allowed now: SETTINGS at first, CONTINUATION in a block
        self._ordered = True

    def on_block(self, stream_id: int, block: bytes, *, ended: bool) -> None:
        """A whole header block has arrived."""
        raise NotImplementedError

    def _check_order(self, kind: int, stream_id: int) -> None:
        if self._block_stream:
            if kind != fr.CONTINUATION or stream_id != self._block_stream:
                raise fr.H2Error(fr.PROTOCOL_ERROR, "header block interrupted by another frame")
        elif kind != fr.SETTINGS:
            raise fr.H2Error(
                fr.PROTOCOL_ERROR, f"http2 handshake failed: frame {kind} before SETTINGS"
            )

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & fr.PADDED:
            payload = fr.unpad(payload)
        if flags & fr.PRIORITY_FLAG:
            payload = payload[5:]
        _check_stream_id(stream_id)
        if flags & fr.END_HEADERS:
            self.on_block(stream_id, payload, ended=flags & fr.END_STREAM != 0)
        else:
            self._block, self._block_flags, self._block_stream = payload, flags, stream_id
            self._block_frames = 0
            self._ordered = True

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._block_stream:
            raise fr.H2Error(fr.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self.charge_flood(1, "CONTINUATION")
        self._block += payload
        self._block_frames += 1
        if (
            len(self._block) > self.limits.max_header_bytes
            or self._block_frames > _MAX_BLOCK_FRAMES
        ):
            raise fr.H2Error(fr.ENHANCE_YOUR_CALM, "header block is too long")
        if flags & fr.END_HEADERS:
            block, self._block = self._block, b""
            self._block_stream = 0
            self._ordered = False
            self.on_block(stream_id, block, ended=self._block_flags & fr.END_STREAM != 0)


def _check_stream_id(stream_id: int) -> None:
    if stream_id % 2 == 0:
        raise fr.H2Error(fr.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}: not a client's")
