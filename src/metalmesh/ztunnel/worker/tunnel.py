"""The application's end of a tunnel: its socket on one side, a CONNECT stream on the other.

Bytes from the application are read straight into the connection's output buffer, behind room
for the frame header; bytes for it are sent straight from the receive buffer. What the socket
does not take is copied and kept, up to the stream's window, and the peer is not credited.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from metalmesh.hbone import frames as fr
from metalmesh.hbone.buffers import BUFFER_BYTES, CHUNK_BYTES
from metalmesh.hbone.stream import RUNNING, Stream
from metalmesh.net.sockets import reset_on_close
from metalmesh.ztunnel.worker.flow import OK
from metalmesh.ztunnel.worker.loop import ERROR, HANGUP, PAUSED, READ, READ_HANGUP, WRITE
from metalmesh.ztunnel.worker.tls import HIGH_BYTES

if TYPE_CHECKING:
    from metalmesh.hbone.mux import Mux
    from metalmesh.ztunnel.worker.flow import Flow
    from metalmesh.ztunnel.worker.loop import Loop

_PACK_INTO: Final = fr.FRAME_HEADER.pack_into
_MAX_VIEWS: Final = 512
#: room below which the output buffer is emptied before more is read into it
_MIN_ROOM: Final = 32768


class Tunnel(Stream):
    """Pump between an application's socket and a stream; the ends of a mesh add the rest."""

    __slots__ = (
        "_backlog",
        "_backlog_bytes",
        "_broken",
        "_bulk",
        "_events",
        "_peer_shut",
        "fd",
        "flow",
        "loop",
        "over",
        "sock",
    )

    def __init__(self, loop: Loop, flow: Flow) -> None:
        super().__init__()
        self.loop = loop
        self.flow = flow
        self.sock: socket.SocketType | None = None
        self.fd = -1
        self.over = False
        self._events = 0
        #: the last read filled a frame: read a whole batch next time
        self._bulk = False
        #: copies of what the application has not taken
        self._backlog: list[memoryview] = []
        self._backlog_bytes = 0
        #: we have sent FIN to the application
        self._peer_shut = False
        #: error of the application's socket; what it wrote before is still to be passed on
        self._broken = ""

    def attach(self, sock: socket.SocketType) -> None:
        """Take the application's socket over."""
        self.sock = sock
        self.fd = sock.fileno()

    def watch(self, events: int) -> None:
        """Watch the application's socket for ``events``."""
        if events != self._events:
            if self._events == 0:
                self.loop.watch(self.fd, events, self)
            else:
                self.loop.rewatch(self.fd, events)
            self._events = events

    def start(self) -> None:
        """The tunnel is open: copy both ways."""
        self.watch(self._interest())
        self._check_remote_end()

    def _interest(self) -> int:
        """What to watch for in the present state."""
        reading = not self.local_end and self.blocked == RUNNING
        events = (READ | READ_HANGUP) if reading else 0
        if self._backlog:
            events |= WRITE
        return events or PAUSED

    def on_event(self, events: int) -> None:
        """The application's socket is ready."""
        if self.over:
            return
        if events & WRITE and self._backlog:
            self._push()
        if self.over or not events & (READ | READ_HANGUP | HANGUP | ERROR):
            return
        if self.local_end or self.blocked != RUNNING:
            if events & ERROR:
                self.abort("connection reset by the application")
            return
        self._pull(events)

    def on_fault(self) -> None:
        """A bug of ours ends this connection only."""
        self.abort("internal error")

    # --- application -> tunnel
    def _pull(self, events: int) -> None:
        """Read what the application has sent into frames."""
        mux, sock = self.mux, self.sock
        if mux is None or sock is None:
            return
        window = self.send_window
        if window > mux.send_window:
            window = mux.send_window
        if window <= 0 or mux.queued > HIGH_BYTES:
            mux.block(self)
            self.watch(self._interest())
            return
        broken = self._broken
        try:
            if self._bulk and mux.peer_frame < CHUNK_BYTES:
                size = self._read_batch(mux, sock, min(window, CHUNK_BYTES))
            else:
                size = self._read_frame(mux, sock, window, events)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(f"io error: {error}")
            return
        if size == 0:
            self._at_end(mux)
            return
        self.send_window -= size
        mux.send_window -= size
        self.flow.from_app += size
        if not mux.dirty:
            mux.mark_dirty()
        if self._broken != broken:  # RST came with the last bytes
            self.abort(self._broken)
        elif self.local_end:  # FIN came with the last bytes
            if self.remote_end:
                mux.forget(self)
            self._ended()

    def _read_frame(self, mux: Mux, sock: socket.SocketType, window: int, events: int) -> int:
        """Read into one frame; set ``local_end`` if FIN is right behind the data."""
        buffer = mux.out or mux.take_buffer()
        start = mux.out_used + fr.HEADER_BYTES
        room = BUFFER_BYTES - start
        if room < (CHUNK_BYTES if self._bulk else _MIN_ROOM):
            mux.flush_output()
            buffer = mux.take_buffer()
            start = mux.out_used + fr.HEADER_BYTES
            room = BUFFER_BYTES - start
        limit = min(room, window, mux.peer_frame, CHUNK_BYTES)
        size = sock.recv_into(buffer.view[start : start + limit])
        if size == 0:
            return 0
        flags = 0
        self._bulk = size >= fr.DEFAULT_FRAME_BYTES
        if size < limit and events & READ_HANGUP:
            flags = self._peek_end(sock)
        _PACK_INTO(buffer.data, start - fr.HEADER_BYTES, size << 8, flags, self.stream_id)
        mux.out_used = start + size
        return size

    def _peek_end(self, sock: socket.SocketType) -> int:
        """END_STREAM if nothing but FIN is left, which saves a frame, a record and a packet."""
        try:
            if not sock.recv(1, socket.MSG_PEEK):
                self.local_end = True
                return fr.END_STREAM
        except BlockingIOError:  # more may come
            pass
        except OSError as error:  # told once: the next read would see a harmless end
            self._broken = f"io error: {error}"
        return 0

    def _read_batch(self, mux: Mux, sock: socket.SocketType, limit: int) -> int:
        """Scatter a batch over frames that are shorter than it."""
        if mux.out_used:
            mux.flush_output()
        buffer = mux.take_buffer()
        frame_bytes = mux.peer_frame
        size = sock.recvmsg_into(buffer.slots(frame_bytes, limit))[0]
        if size == 0:
            return 0
        data, stream_id, position, left = buffer.data, self.stream_id, 0, size
        while left > frame_bytes:
            _PACK_INTO(data, position, frame_bytes << 8, 0, stream_id)
            position += fr.HEADER_BYTES + frame_bytes
            left -= frame_bytes
        _PACK_INTO(data, position, left << 8, 0, stream_id)
        mux.out_used = position + fr.HEADER_BYTES + left
        self._bulk = size > frame_bytes
        return size

    def _at_end(self, mux: Mux) -> None:
        """The application has no more to say."""
        if self._broken:
            self.abort(self._broken)
            return
        mux.end_stream(self)
        self._ended()

    def _ended(self) -> None:
        """Our direction is closed."""
        if self.remote_end and not self._backlog:
            self.close()
        else:
            self.watch(self._interest())

    def resume(self) -> None:
        """The windows let us go on."""
        if not self.over:
            self.watch(self._interest())

    # --- tunnel -> application
    def deliver(self) -> None:
        """Send what has arrived to the application."""
        chunks = self.chunks
        if self._broken or self.over:
            chunks.clear()
            return
        if self._backlog or not self._events:  # not connected yet, or still behind
            self._keep(chunks, 0)
            return
        if chunks:
            sent = self._send(chunks)
            if sent < 0:
                return
            if sent < (len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))):
                self._keep(chunks, sent)
                self.watch(self._interest())
            self.flow.to_app += sent
            if self.mux is not None:
                self.mux.credit_stream(self, sent)
        if self.remote_end:
            self._check_remote_end()

    def _send(self, views: list[memoryview]) -> int:
        """Bytes the application took; -1 when it takes no more at all."""
        assert self.sock is not None
        try:
            if len(views) == 1:
                return self.sock.send(views[0])
            return self.sock.sendmsg(views[:_MAX_VIEWS])
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail_write(str(error))
            return -1

    def _took(self, size: int) -> None:
        self.flow.to_app += size
        if self.mux is not None and size:
            self.mux.credit_stream(self, size)

    def _keep(self, chunks: list[memoryview], skip: int) -> None:
        """Copy the chunks, less their first ``skip`` bytes: their buffer is about to be reused."""
        kept = 0
        for chunk in chunks:
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            copy = memoryview(bytes(chunk[skip:] if skip else chunk))
            skip = 0
            kept += len(copy)
            self._backlog.append(copy)
        chunks.clear()
        self._hold(kept)

    def _hold(self, size: int) -> None:
        self._backlog_bytes += size
        if self.mux is not None and size:
            self.mux.hold(size)

    def _push(self) -> None:
        """Send the backlog."""
        backlog = self._backlog
        sent = self._send(backlog)
        if sent < 0:
            return
        self._took(sent)
        self._hold(-sent)
        done, left = 0, sent
        while done < len(backlog) and left >= len(backlog[done]):
            left -= len(backlog[done])
            done += 1
        del backlog[:done]
        if left:
            backlog[0] = backlog[0][left:]
        if not backlog:
            self.watch(self._interest())
            self._check_remote_end()

    def _check_remote_end(self) -> None:
        """Pass the peer's end on when everything before it has been taken."""
        if not self.remote_end or self._backlog or self._peer_shut:
            return
        if self.local_end:
            self.close()
            return
        self._peer_shut = True
        assert self.sock is not None
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail_write(str(error))

    def _fail_write(self, error: str) -> None:
        """The application takes no more.

        What it wrote before (an early answer, say) may still be in its socket: it is read
        first, and the error that ends reading resets the stream.
        """
        self._hold(-self._backlog_bytes)
        self._backlog.clear()
        self.chunks.clear()
        self._broken = f"io error: {error}"
        if self.local_end:
            self.abort(self._broken)
        else:
            self.watch(self._interest())

    # --- the end
    def on_reset(self, code: int) -> None:
        """The peer gave the stream up; data that came before still goes to the application."""
        lost = self.mux is None or self.mux.closed
        if code == fr.NO_ERROR or (self.remote_end and not lost):
            self._ended_early()
            return
        if self.chunks and self._events and not self._backlog and not self._broken:
            self._took(max(0, self._send(self.chunks)))
        self.chunks.clear()
        if not self.over:
            self.terminate("tunnel connection lost" if lost else f"stream reset (code {code})")

    def _ended_early(self) -> None:
        """The peer has said everything and needs no more of ours.

        Envoy says so by an error when its application has closed. What it has said is complete, and
        may still wait here for an application that is slow to read.
        """
        self.local_end = self.remote_end = True
        if self._events:
            self.deliver()
        else:
            self.close()  # no application has accepted it yet
        self.chunks.clear()
        if not self.over:
            self.watch(self._interest())

    def abort(self, error: str, flags: str = OK, code: int = fr.CONNECT_ERROR) -> None:
        """Reset both sides."""
        if self.over:
            return
        if self.mux is not None:
            self.mux.reset_stream(self, code)
        self.terminate(error, flags)

    def terminate(self, error: str, flags: str = OK) -> None:
        """Reset the application's side; the stream is gone already."""
        if self.over:
            return
        if self.sock is not None:
            reset_on_close(self.sock)
        self._release()
        self.flow.finish(error, flags)

    def close(self) -> None:
        """Both directions have ended in good order."""
        if self.over:
            return
        self._release()
        self.flow.finish()

    def _release(self) -> None:
        self.over = True
        self._hold(-self._backlog_bytes)
        self._backlog.clear()
        self.chunks.clear()
        if self.sock is not None:
            self.loop.close(self.sock)
        self.mux = None
        self.on_over()

    def on_over(self) -> None:
        """The tunnel has ended, well or not; for the owner's books."""
