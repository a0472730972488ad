"""One HTTP/2 connection that carries nothing but CONNECT streams, client or server.

Refused: server push, priorities (ignored), extended CONNECT, any other method. Every list and
buffer a peer can fill is bounded by :class:`~metalmesh.hbone.frames.Limits`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.hbone import frames as fr
from metalmesh.hbone.blocks import BlockReader
from metalmesh.hbone.headers import HeaderDecoder, MalformedError, response_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.hbone.buffers import Shared
    from metalmesh.hbone.stream import Stream

_DRAIN_PING: Final = b"mm-drain"
_ALIVE_PING: Final = b"mm-alive"
#: streams a client may open before the server's SETTINGS arrive (istio-facts 2.4)
_ASSUMED_STREAMS: Final = 100


class Mux(BlockReader):
    """The connection; the subclass moves bytes and creates streams."""

    __slots__ = (
        "_decoder",
        "_goaway_last",
        "_last_id",
        "_next_id",
        "_ping_sent_at",
        "draining",
        "peer_goaway",
        "peer_max_streams",
    )

    def __init__(self, *, client: bool, limits: fr.Limits, shared: Shared) -> None:
        super().__init__(client=client, limits=limits, shared=shared)
        self._next_id = 1
        self._last_id = 0
        self._decoder = HeaderDecoder(limits.max_header_bytes)
        self._goaway_last = fr.MAX_STREAM_ID
        self._ping_sent_at = -1.0
        self.draining = False
        self.peer_goaway = False
        self.peer_max_streams = _ASSUMED_STREAMS

    # --- filled in by the owner
    def on_request(self, stream_id: int, headers: dict[str, str], ended: bool) -> None:
        """A CONNECT (or anything else) arrived; answer with ``accept`` or ``reject``."""
        raise NotImplementedError

    def on_goaway(self, code: int, debug: bytes) -> None:
        """The peer takes no new streams; those it will not serve were reset already."""

    def on_settings(self) -> None:
        """The peer's settings (``peer_max_streams``) have changed."""

    # --- calls of the owner
    def start(self) -> None:
        """Send preface, settings and the connection window."""
        limits = self.limits
        values = {
            fr.HEADER_TABLE_SIZE: 0,
            fr.INITIAL_WINDOW_SIZE: limits.stream_window,
            fr.MAX_FRAME_SIZE: limits.max_frame,
            fr.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
        }
        if self.client:
            values[fr.ENABLE_PUSH] = 0
        else:
            values[fr.MAX_CONCURRENT_STREAMS] = limits.max_streams
        hello = (fr.PREFACE if self.client else b"") + fr.settings(values)
        more = limits.connection_window - fr.DEFAULT_WINDOW
        self.emit(hello + fr.window_update(0, more) if more > 0 else hello)

    @property
    def has_room(self) -> bool:
        """Whether a client may open another stream now."""
        return (
            len(self.streams) < min(self.limits.max_streams, self.peer_max_streams)
            and not self.peer_goaway
            and not self.closed
            and self._next_id < fr.MAX_STREAM_ID
        )

    def open_stream(self, stream: Stream, block: bytes) -> None:
        """Send a CONNECT (client); check ``has_room`` first."""
        stream.stream_id = self._next_id
        self._next_id += 2
        self._attach(stream)
        self.emit(fr.frame(fr.HEADERS, fr.END_HEADERS, stream.stream_id, block))

    def adopt(self, stream: Stream, stream_id: int, *, ended: bool) -> None:
        """Bind a stream object to a request (server); answer it with ``accept`` later."""
        stream.stream_id = stream_id
        stream.remote_end = ended
        self._attach(stream)

    def _attach(self, stream: Stream) -> None:
        stream.mux = self
        stream.send_window = self.peer_stream_window
        stream.recv_window = self.limits.stream_window
        self.streams[stream.stream_id] = stream

    def accept(self, stream: Stream, block: bytes) -> None:
        """Answer 200: the tunnel is open."""
        stream.opened = True
        self.emit(fr.frame(fr.HEADERS, fr.END_HEADERS, stream.stream_id, block))

    def reject(self, stream_id: int, status: str) -> None:
        """Answer with an error status and end the stream."""
        if self.closed:
            return
        flags = fr.END_HEADERS | fr.END_STREAM
        self.emit(fr.frame(fr.HEADERS, flags, stream_id, response_block(status)))
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.forget(stream)

    def drain(self) -> None:
        """Begin a graceful end: the peer learns at once, streams on their way still count."""
        if self.draining or self.closed:
            return
        self.draining = True
        self.emit(fr.goaway(fr.MAX_STREAM_ID, fr.NO_ERROR) + fr.frame(fr.PING, 0, 0, _DRAIN_PING))

    def say_goodbye(self, error: fr.H2Error | None) -> None:
        """The last GOAWAY before the connection is closed, with the reason if there is one."""
        code, text = (error.code, str(error)) if error else (fr.NO_ERROR, "")
        self.emit(fr.goaway(self._last_id, code, text.encode()))

    def check_alive(self, now: float) -> bool:
        """Call every ``ping_interval``: sends a PING; false when the peer is silent for good."""
        if self._ping_sent_at >= 0:
            return now - max(self._ping_sent_at, self.now) < self.limits.ping_timeout
        self._ping_sent_at = now
        self.emit(fr.frame(fr.PING, 0, 0, _ALIVE_PING))
        return True

    def fail_streams(self, code: int) -> None:
        """The connection is lost: reset every stream; nothing can be sent any more."""
        self.closed = True
        lost = list(self.streams.values())
        self.streams.clear()
        self.stalled.clear()
        for stream in lost:
            if stream.mux is not None:
                stream.on_reset(code)

    # --- frames
    def _begin_data(self, stream_id: int, size: int, flags: int) -> Stream | None:
        """Charge the windows for a DATA frame; the stream it belongs to, if still open."""
        self._data_stream = None
        self._data_end = flags & fr.END_STREAM != 0
        if self._ordered:
            self._check_order(fr.DATA, stream_id)
        if size > self.limits.max_frame:
            raise fr.H2Error(fr.FRAME_SIZE_ERROR, f"DATA of {size} bytes is too long")
        self.recv_window -= size
        self.recv_uncredited += size
        if self.recv_window < 0:
            raise fr.H2Error(fr.FLOW_CONTROL_ERROR, "DATA exceeds the connection's window")
        stream = self.streams.get(stream_id)
        if stream is None or stream.remote_end:
            self._check_not_idle(stream_id, "DATA")
            return None
        stream.recv_window -= size
        if stream.recv_window < 0:
            raise fr.H2Error(fr.FLOW_CONTROL_ERROR, f"DATA exceeds the window of {stream_id}")
        self._data_stream = stream
        if size == 0:
            self._empty_data(stream)
        return stream

    def _handle_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Dispatch; unknown kinds are ignored as RFC 9113 section 5.5 wants."""
        if self._ordered:
            self._check_order(kind, stream_id)
        handler = _HANDLERS.get(kind)
        if handler is None:
            self.charge_flood(1, "unknown")
        else:
            handler(self, flags, stream_id, payload)

    def _check_not_idle(self, stream_id: int, what: str) -> None:
        used = self._next_id - 1 if self.client else self._last_id
        if stream_id == 0 or stream_id > used or stream_id % 2 == 0:
            raise fr.H2Error(fr.PROTOCOL_ERROR, f"{what} on stream {stream_id}, never opened")

    def _on_padded_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        data = fr.unpad(payload)
        stream = self._begin_data(stream_id, len(payload), flags)
        self.charge_flood(0 if data else 1, "padded DATA")
        if stream is None:
            return
        self.credit_stream(stream, len(payload) - len(data))
        if data:
            stream.chunks.append(memoryview(data))
            self.touch(stream)
        if flags & fr.END_STREAM:
            self.remote_ended(stream)

    def on_block(self, stream_id: int, block: bytes, *, ended: bool) -> None:
        """A whole header block has arrived."""
        stream = self.streams.get(stream_id)
        try:
            headers = self._decoder.decode(block)
        except MalformedError:
            self._refuse(stream, stream_id, fr.PROTOCOL_ERROR)
            return
        if self.client:
            self._on_answer(stream, stream_id, headers, ended=ended)
        elif stream is not None:
            self._on_trailers(stream, ended=ended)
        elif stream_id > self._last_id:
            self._on_new_request(stream_id, headers, ended=ended)

    def _refuse(self, stream: Stream | None, stream_id: int, code: int) -> None:
        self.charge_flood(10, "refused stream")
        self._last_id = max(self._last_id, stream_id)
        if stream is not None:
            self.forget(stream)
            stream.on_reset(code)
        self.emit(fr.rst_stream(stream_id, code))

    def _on_new_request(self, stream_id: int, headers: dict[str, str], *, ended: bool) -> None:
        if stream_id > self._goaway_last:
            self.charge_flood(1, "HEADERS after GOAWAY")
            return
        if len(self.streams) >= self.limits.max_streams:
            self._refuse(None, stream_id, fr.REFUSED_STREAM)
            return
        self._last_id = stream_id
        self.on_request(stream_id, headers, ended)

    def _on_trailers(self, stream: Stream, *, ended: bool) -> None:
        self.charge_flood(1, "trailers")
        if ended:
            self.remote_ended(stream)
        else:
            self._refuse(stream, stream.stream_id, fr.PROTOCOL_ERROR)

    def _on_answer(
        self, stream: Stream | None, stream_id: int, headers: dict[str, str], *, ended: bool
    ) -> None:
        if stream is None:
            self._check_not_idle(stream_id, "HEADERS")
            return
        status = headers.get(":status", "")
        if not stream.opened and not status.startswith("1"):
            stream.opened = status == "200"
            stream.on_response(status, headers)
        elif not ended:
            self.charge_flood(1, "informational HEADERS")
        if ended and self.streams.get(stream_id) is stream:
            self.remote_ended(stream)

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise fr.H2Error(fr.FRAME_SIZE_ERROR, "RST_STREAM must be 4 bytes")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "RST_STREAM")
            return
        silent = stream.recv_window == self.limits.stream_window
        if not self.client and (silent or not stream.opened):
            self.charge_flood(10, "rapid RST_STREAM")  # we connected to the application in vain
        self.forget(stream)
        stream.on_reset(int.from_bytes(payload, "big"))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise fr.H2Error(fr.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if flags & fr.ACK:
            if payload:
                raise fr.H2Error(fr.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with content")
            self._decoder.forbid_table()
            return
        self.charge_flood(1, "SETTINGS")
        self._ordered = False
        for key, value in fr.parse_settings(payload):
            if key == fr.INITIAL_WINDOW_SIZE:
                self._on_initial_window(value)
            elif key == fr.MAX_FRAME_SIZE:
                self.peer_frame = value
            elif key == fr.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
            elif key == fr.ENABLE_PUSH and value and self.client:
                raise fr.H2Error(fr.PROTOCOL_ERROR, "SETTINGS: a server cannot enable push")
        self.emit(fr.frame(fr.SETTINGS, fr.ACK, 0))
        self.on_settings()

    def _on_initial_window(self, value: int) -> None:
        change = value - self.peer_stream_window
        self.peer_stream_window = value
        for stream in list(self.streams.values()):
            self._grant_stream(stream, change)

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            code = fr.PROTOCOL_ERROR if stream_id else fr.FRAME_SIZE_ERROR
            raise fr.H2Error(code, "PING must be 8 bytes on stream 0")
        if not flags & fr.ACK:
            self.charge_flood(5, "PING")
            self.emit(fr.frame(fr.PING, fr.ACK, 0, payload))
        elif payload == _ALIVE_PING:
            self._ping_sent_at = -1.0
        elif payload == _DRAIN_PING and self.draining and not self.closed:
            self._goaway_last = self._last_id
            self.emit(fr.goaway(self._last_id, fr.NO_ERROR))
            if not self.streams:
                self.on_idle()

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) < 8:
            raise fr.H2Error(fr.PROTOCOL_ERROR, "GOAWAY must be 8 bytes on stream 0")
        self.charge_flood(1, "GOAWAY")
        last = int.from_bytes(payload[:4], "big") & fr.MAX_STREAM_ID
        self.peer_goaway = True
        for stream in [s for i, s in self.streams.items() if i > last]:
            self.forget(stream)
            stream.on_reset(fr.REFUSED_STREAM)
        self.on_goaway(int.from_bytes(payload[4:8], "big"), payload[8:])

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise fr.H2Error(fr.FRAME_SIZE_ERROR, "WINDOW_UPDATE must be 4 bytes")
        increment = int.from_bytes(payload, "big") & fr.MAX_WINDOW
        stream = self.streams.get(stream_id)
        if increment == 0:
            raise fr.H2Error(fr.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 bytes")
        if stream_id == 0:
            self._grant_connection(increment)
        elif stream is not None:
            self._grant_stream(stream, increment)
        else:
            self._check_not_idle(stream_id, "WINDOW_UPDATE")

    def _on_priority(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        self.charge_flood(1, "PRIORITY")

    def _on_push_promise(self, _flags: int, stream_id: int, _payload: bytes) -> None:
        raise fr.H2Error(fr.PROTOCOL_ERROR, f"PUSH_PROMISE on stream {stream_id}")


_HANDLERS: Final[dict[int, Callable[[Mux, int, int, bytes], None]]] = {
    fr.DATA: Mux._on_padded_data,  # noqa: SLF001 - the table of this class's own methods
    fr.HEADERS: Mux._on_headers,  # noqa: SLF001
    fr.PRIORITY: Mux._on_priority,  # noqa: SLF001
    fr.RST_STREAM: Mux._on_rst_stream,  # noqa: SLF001
    fr.SETTINGS: Mux._on_settings,  # noqa: SLF001
    fr.PUSH_PROMISE: Mux._on_push_promise,  # noqa: SLF001
    fr.PING: Mux._on_ping,  # noqa: SLF001
    fr.GOAWAY: Mux._on_goaway,  # noqa: SLF001
    fr.WINDOW_UPDATE: Mux._on_window_update,  # noqa: SLF001
    fr.CONTINUATION: Mux._on_continuation,  # noqa: SLF001
}
