"""The sending half of a connection: output buffer, windows granted by the peer, stream ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metalmesh.hbone import frames as fr
from metalmesh.hbone.buffers import BUFFER_BYTES
from metalmesh.hbone.stream import CONNECTION_BLOCKED, RUNNING, STREAM_BLOCKED, Stream

if TYPE_CHECKING:
    from metalmesh.hbone.buffers import Budget, BufferPool, OutBuffer, Shared

_PACK = fr.FRAME_HEADER.pack


class FrameWriter:
    """Output of one connection.

    Frames gather in ``out`` up to ``out_used``; the subclass drains it in :meth:`flush_output`
    (encrypt, set ``out_used`` to 0) when the buffer is full or a turn of its loop ends.
    Streams write DATA straight into the buffer (see ``metalmesh.ztunnel.worker.tunnel``).
    """

    __slots__ = (
        "budget",
        "client",
        "closed",
        "dirty",
        "held",
        "limits",
        "now",
        "out",
        "out_used",
        "peer_frame",
        "peer_stream_window",
        "pool",
        "queued",
        "recv_uncredited",
        "recv_window",
        "send_window",
        "stalled",
        "streams",
    )

    def __init__(self, *, client: bool, limits: fr.Limits, shared: Shared) -> None:
        self.client = client
        self.limits = limits
        self.pool: BufferPool = shared.pool
        self.budget: Budget = shared.budget
        #: monotonic seconds of the current turn, set by the owner
        self.now = 0.0
        self.streams: dict[int, Stream] = {}
        self.closed = False
        self.out: OutBuffer | None = None
        self.out_used = 0
        self.dirty = False
        #: bytes encrypted and not yet taken by the socket; the owner keeps it
        self.queued = 0
        #: bytes our streams hold for slow applications
        self.held = 0
        self.send_window = fr.DEFAULT_WINDOW
        self.peer_stream_window = fr.DEFAULT_WINDOW
        self.peer_frame = fr.DEFAULT_FRAME_BYTES
        self.recv_window = limits.connection_window
        self.recv_uncredited = 0
        #: streams that wait for the connection's window or socket
        self.stalled: list[Stream] = []

    # --- filled in by the owner
    def mark_dirty(self) -> None:
        """Output exists: call :meth:`flush_output` before the turn ends."""
        raise NotImplementedError

    def flush_output(self) -> None:
        """Take ``out[:out_used]`` away and set ``out_used`` to 0."""
        raise NotImplementedError

    # --- output
    def take_buffer(self) -> OutBuffer:
        """The output buffer, borrowed if there is none."""
        buffer = self.out
        if buffer is None:
            buffer = self.out = self.pool.take()
            self.out_used = 0
        return buffer

    def release_buffer(self) -> None:
        """Give the drained buffer back."""
        if self.out is not None:
            self.pool.give(self.out)
            self.out = None

    def emit(self, data: bytes) -> None:
        """Append ready-made frames."""
        size = len(data)
        buffer = self.take_buffer()
        if self.out_used + size > BUFFER_BYTES:
            self.flush_output()
            buffer = self.take_buffer()
        start = self.out_used
        buffer.data[start : start + size] = data
        self.out_used = start + size
        if not self.dirty:
            self.mark_dirty()

    def end_stream(self, stream: Stream) -> None:
        """Close our direction."""
        if stream.local_end or self.closed:
            return
        stream.local_end = True
        self.emit(_PACK(fr.DATA, fr.END_STREAM, stream.stream_id))
        if stream.remote_end:
            self.forget(stream)

    def reset_stream(self, stream: Stream, code: int) -> None:
        """End a stream abnormally; no-op when it is already over."""
        if self.streams.get(stream.stream_id) is stream:
            if not self.closed:
                self.emit(fr.rst_stream(stream.stream_id, code))
            self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """The stream is over for this connection."""
        if self.streams.pop(stream.stream_id, None) is not None and not self.streams:
            self.on_idle()

    def on_idle(self) -> None:
        """The last stream has ended; the owner may override."""

    # --- our receive windows
    def hold(self, size: int) -> None:
        """``size`` bytes (may be negative) are kept for a slow application."""
        self.held += size
        self.budget.used += size
        if size < 0 and self.recv_uncredited >= self.limits.connection_window >> 2:
            self._credit_connection()

    def _credit_connection(self) -> None:
        """Give received bytes back to the connection's window, unless we hold too much."""
        if self.budget.withholds(self.held) or self.closed:
            return
        self.emit(fr.window_update(0, self.recv_uncredited))
        self.recv_window += self.recv_uncredited
        self.recv_uncredited = 0

    def credit_stream(self, stream: Stream, size: int) -> None:
        """The application took ``size`` bytes of the stream."""
        if stream.remote_end:
            return
        total = stream.uncredited + size
        if total >= self.limits.stream_window >> 1 and not self.closed:
            self.emit(fr.window_update(stream.stream_id, total))
            stream.recv_window += total
            total = 0
        stream.uncredited = total

    # --- windows granted by the peer
    def block(self, stream: Stream) -> None:
        """The stream has data to send and may not; it is resumed when it may."""
        if stream.blocked != RUNNING:
            return
        if stream.send_window <= 0:
            stream.blocked = STREAM_BLOCKED
        else:
            stream.blocked = CONNECTION_BLOCKED
            self.stalled.append(stream)

    def resume_stalled(self) -> None:
        """The connection's window or socket has room again."""
        waiting, self.stalled = self.stalled, []
        for stream in waiting:
            if stream.blocked == CONNECTION_BLOCKED:
                stream.blocked = RUNNING
                if stream.mux is not None:
                    stream.resume()

    def _grant_stream(self, stream: Stream, increment: int) -> None:
        """The peer widened (or, by SETTINGS, narrowed) the window of a stream."""
        stream.send_window += increment
        if stream.send_window > fr.MAX_WINDOW:
            raise fr.H2Error(fr.FLOW_CONTROL_ERROR, f"window of {stream.stream_id} overflows")
        if stream.blocked == STREAM_BLOCKED and stream.send_window > 0:
            stream.blocked = RUNNING
            stream.resume()

    def _grant_connection(self, increment: int) -> None:
        """The peer widened the window of the connection."""
        self.send_window += increment
        if self.send_window > fr.MAX_WINDOW:
            raise fr.H2Error(fr.FLOW_CONTROL_ERROR, "WINDOW_UPDATE: connection window overflows")
        if self.stalled:
            self.resume_stalled()
