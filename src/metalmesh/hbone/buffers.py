"""Output buffers of connections, and the bound on what all connections hold for slow readers.

A connection has frames to send only now and then, and then wants one large buffer for
everything it says in a turn of the loop. So buffers are lent: a thousand idle connections
hold none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from metalmesh.hbone.frames import HEADER_BYTES

#: bytes read from an application at once: fewer, larger system calls are what makes a
#: Python data path fast, and one such batch still fits into the processor's second-level cache
CHUNK_BYTES: Final = 512 * 1024
#: room for one batch with the headers of its frames (smallest frame size 16 KiB) and for
#: the small frames of other streams beside it
BUFFER_BYTES: Final = CHUNK_BYTES + 64 * 1024
#: buffers kept for reuse; more are made when more connections write in one turn
KEEP_BUFFERS: Final = 4


class OutBuffer:
    """A plaintext buffer and the frame slots cut from it."""

    __slots__ = ("_slot_bytes", "_slots", "data", "view")

    def __init__(self) -> None:
        self.data = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.data)
        self._slots: list[memoryview] = []
        self._slot_bytes = 0

    def slots(self, frame_bytes: int, total: int) -> list[memoryview]:
        """Views for ``total`` payload bytes in frames of ``frame_bytes``, header gaps between.

        ``recvmsg_into`` scatters a batch straight into them, so no byte is moved to make room
        for frame headers.
        """
        if self._slot_bytes != frame_bytes:
            self._slot_bytes = frame_bytes
            step = frame_bytes + HEADER_BYTES
            starts = range(HEADER_BYTES, HEADER_BYTES + step * (CHUNK_BYTES // frame_bytes), step)
            self._slots = [self.view[start : start + frame_bytes] for start in starts]
        if total >= CHUNK_BYTES:
            return self._slots
        count, rest = divmod(total, frame_bytes)
        chosen = self._slots[:count]
        if rest:
            chosen.append(self._slots[count][:rest])
        return chosen


class BufferPool:
    """Lends buffers to connections."""

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: list[OutBuffer] = []

    def take(self) -> OutBuffer:
        """A buffer; its content is whatever was there."""
        return self._free.pop() if self._free else OutBuffer()

    def give(self, buffer: OutBuffer) -> None:
        """Return a buffer."""
        if len(self._free) < KEEP_BUFFERS:
            self._free.append(buffer)


class Budget:
    """Bytes that all connections of a process hold for applications that read slowly.

    Each stream alone is bounded by its window. When the sum passes ``limit``, connections that
    hold more than ``fair`` get no further connection credit until they hold less, so the hogs
    wait and nobody else does.
    """

    __slots__ = ("fair", "limit", "used")

    def __init__(self, limit: int = 256 << 20, fair: int = 1 << 20) -> None:
        self.limit = limit
        self.fair = fair
        self.used = 0

    def withholds(self, held: int) -> bool:
        """Whether a connection that holds ``held`` bytes must wait for its readers."""
        return self.used > self.limit and held > self.fair


@dataclass(frozen=True, slots=True)
class Shared:
    """What the connections of one process share."""

    pool: BufferPool = field(default_factory=BufferPool)
    budget: Budget = field(default_factory=Budget)
