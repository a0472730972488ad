"""HBONE over a TLS socket: decrypt into the mux, encrypt what it says, once per turn.

``SSLObject`` on two memory BIOs, because the records of a whole batch then cost one ``recv``
or ``send``; an ``SSLSocket`` makes three system calls per record and is a third dearer.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from metalmesh.hbone import frames as fr
from metalmesh.hbone.mux import Mux
from metalmesh.ztunnel.worker.certificates import CIPHER_SUITES
from metalmesh.ztunnel.worker.flow import CERT_REVOKED
from metalmesh.ztunnel.worker.loop import READ, WRITE

if TYPE_CHECKING:
    import socket

    from metalmesh.hbone.frames import Limits
    from metalmesh.ztunnel.worker.loop import Loop, Timer
    from metalmesh.ztunnel.worker.tunnel import Tunnel

#: ciphertext the socket has not taken: above the first streams stop sending, below the second
#: they go on; above the third the peer reads nothing and asks for answers all the time
HIGH_BYTES: Final = 1 << 20
LOW_BYTES: Final = 256 << 10
_LIMIT_BYTES: Final = 16 << 20
#: KeyUpdates and the like carry nothing and cost several hashes each: a peer may send so many bytes
#: around its data, and each byte of data lets it send some more
_MAX_BARREN_BYTES: Final = 128 << 10
_BYTES_PER_BYTE: Final = 4
#: at most this many views go to one ``sendmsg`` (IOV_MAX is 1024)
_MAX_VIEWS: Final = 512

HANDSHAKE_SECONDS: Final = 10.0
#: Istio's text (istio-facts 2.3)
REVOKED: Final = "connection closed: peer certificate revoked by CRL"


class Loss(Enum):
    """Why a connection ended."""

    #: idle and no longer needed, or closed by the peer, or the network
    ENDED = "ended"
    HANDSHAKE = "handshake"
    IDENTITY = "identity"
    REVOKED = "revoked"
    PROTOCOL = "protocol"


class TlsFailedError(Exception):
    """The handshake, or what the peer proved in it, is no good."""

    def __init__(self, message: str, loss: Loss = Loss.HANDSHAKE) -> None:
        self.loss = loss
        super().__init__(message)


class TlsConnection(Mux):
    """One HBONE connection; subclasses are the server's and the client's ends."""

    __slots__ = (
        "_budget",
        "_cipher_in",
        "_cipher_out",
        "_events",
        "_keepalive",
        "_loop",
        "_queue",
        "_read",
        "_sock",
        "_write",
        "handshaking",
        "tls",
    )

    def __init__(
        self, loop: Loop, sock: socket.SocketType, limits: Limits, *, client: bool
    ) -> None:
        super().__init__(client=client, limits=limits, shared=loop.shared)
        self._loop = loop
        self._sock = sock
        self._events = 0
        #: bytes the peer may still send without any data in them
        self._budget = _MAX_BARREN_BYTES
        self._queue: list[bytes | memoryview] = []
        self._keepalive: Timer | None = None
        self.handshaking = True

    # --- filled in by the ends
    def on_secured(self) -> None:
        """The handshake is over; raise TlsFailedError if the peer is not acceptable."""
        raise NotImplementedError

    def on_lost(self, error: str, loss: Loss) -> None:
        """The connection ended (``error`` "" when it was idle and went in good order)."""
        raise NotImplementedError

    # --- handshake
    def secure(self, context: ssl.SSLContext) -> None:
        """Begin the handshake on the connected socket."""
        self._cipher_in = ssl.MemoryBIO()
        self._cipher_out = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._cipher_in, self._cipher_out, server_side=not self.client)
        self._read = self.tls.read
        self._write = self.tls.write
        self._watch(READ)
        if self.client:
            try:
                self._step_handshake()
            except (TlsFailedError, OSError) as error:
                self._fail(error)

    def _handshake(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise TlsFailedError("tls handshake error: the peer closed the connection")
        self._cipher_in.write(data)
        self._step_handshake()
        if not self.handshaking and self._cipher_in.pending:
            self._consume()

    def _step_handshake(self) -> None:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_cipher()
            return
        except ssl.SSLError as error:
            self._send_cipher()  # the alert
            raise TlsFailedError(f"tls handshake error: {error}") from error
        suite = (self.tls.cipher() or ("none",))[0]
        if suite not in CIPHER_SUITES or self.tls.selected_alpn_protocol() != "h2":
            raise TlsFailedError(
                f"tls handshake error: suite {suite}, protocol "
                f"{self.tls.selected_alpn_protocol()}; AES-GCM and h2 are required"
            )
        self.handshaking = False
        self.start()
        self.on_secured()
        self._keepalive = self._loop.call_later(self.limits.ping_interval, self._check_alive)

    def _check_alive(self) -> None:
        if self.closed:
            return
        if not self.check_alive(self._loop.now):
            self.lose("connection lost: the peer answers no PING")
            return
        self._keepalive = self._loop.call_later(self.limits.ping_interval, self._check_alive)

    # --- events
    def _watch(self, events: int) -> None:
        if self._events == 0:
            self._loop.watch(self._sock.fileno(), events, self)
        elif self._events != events:
            self._loop.rewatch(self._sock.fileno(), events)
        self._events = events

    def on_event(self, events: int) -> None:
        """The socket is ready; what the peer or the network did wrong ends this connection."""
        if self.closed:
            return
        try:
            if self.handshaking:
                self._handshake()
                return
            if events & WRITE:
                self._drain_queue()
            if events & ~WRITE:
                self._receive()
        except BlockingIOError:
            pass
        except (fr.H2Error, TlsFailedError, OSError) as error:
            self._fail(error)

    def on_fault(self) -> None:
        """A bug of ours ends this connection only."""
        self.lose("internal error")

    def _fail(self, error: Exception) -> None:
        if isinstance(error, fr.H2Error):
            self.say_goodbye(error)
            self.flush()
            self.lose(str(error), Loss.PROTOCOL)
        elif isinstance(error, TlsFailedError):
            self.lose(str(error), error.loss)
        else:  # ssl.SSLError is an OSError
            self.lose(f"{'tls error' if isinstance(error, ssl.SSLError) else 'io error'}: {error}")

    # --- receiving
    def _receive(self) -> None:
        cipher = self._loop.cipher
        size = self._sock.recv_into(cipher)
        if size == 0:
            self.lose("connection closed by the peer" if self.streams else "")
            return
        self._cipher_in.write(cipher[:size])
        produced = self._consume()
        budget = self._budget + _BYTES_PER_BYTE * produced - (size - produced)
        if budget < 0 and not self.closed:
            raise fr.H2Error(fr.ENHANCE_YOUR_CALM, "flood of TLS records without data")
        self._budget = min(budget, _MAX_BARREN_BYTES)

    def _consume(self) -> int:
        """Decrypt everything that has arrived, in batches, and hand it to the mux; its size."""
        loop = self._loop
        plain, limit, read, pending = loop.plain, loop.plain_limit, self._read, self._cipher_in
        ended, produced = False, 0
        while not self.closed and not ended:
            start = filled = len(self.leftover)
            if filled:
                plain[:filled] = self.leftover
            stop = filled + limit
            more = True
            try:
                while filled < stop:
                    size = read(limit, plain[filled:])
                    if not size:
                        ended = True
                        break
                    filled += size  # type: ignore[operator]
                    if not pending.pending:
                        more = False
                        break
            except ssl.SSLWantReadError:
                more = False
            except ssl.SSLZeroReturnError:
                ended = True
            if filled > start:
                produced += filled - start
                self.receive(plain, filled, loop.now)
            if not more:
                break
        if ended and not self.closed:
            self.lose("connection closed by the peer" if self.streams else "")
        return produced

    # --- sending
    def mark_dirty(self) -> None:
        """Have ``flush`` called when the turn ends."""
        self.dirty = True
        self._loop.dirty.append(self)

    def flush(self) -> None:
        """Encrypt and send what this turn has gathered."""
        self.dirty = False
        if self.closed or self.handshaking:
            return
        try:
            self.flush_output()
        except OSError as error:
            self.lose(f"io error: {error}")
        self.release_buffer()

    def flush_output(self) -> None:
        """Encrypt the output buffer and send the ciphertext."""
        buffer, size = self.out, self.out_used
        if buffer is not None and size:
            self.out_used = 0
            view, write, done = buffer.view, self._write, 0
            while done < size:
                done += write(view[done:size])
        self._send_cipher()

    def _send_cipher(self) -> None:
        data = self._cipher_out.read()
        if not data:
            return
        if self._queue:
            sent = 0
        else:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
        if sent < len(data):
            self._queue.append(memoryview(data)[sent:] if sent else data)
            self.queued += len(data) - sent
            if self.queued > _LIMIT_BYTES:
                raise OSError("the peer asks but does not read")
            self._watch(READ | WRITE)

    def _drain_queue(self) -> None:
        queue = self._queue
        if queue:
            sent = self._sock.sendmsg(queue[:_MAX_VIEWS])
            self.queued -= sent
            done = 0
            while done < len(queue) and sent >= len(queue[done]):
                sent -= len(queue[done])
                done += 1
            del queue[:done]
            if sent:
                queue[0] = memoryview(queue[0])[sent:]
        if not queue:
            self._watch(READ)
        if self.queued < LOW_BYTES and self.stalled:
            self.resume_stalled()

    # --- the end
    def finish(self) -> None:
        """Close in good order: GOAWAY, close_notify, FIN. For connections without streams."""
        if self.closed:
            return
        self.say_goodbye(None)
        self.flush()
        if not self.closed and not self.handshaking:
            with suppress(OSError):  # SSLWantRead: the peer's close_notify is not awaited
                self.tls.unwrap()
            with suppress(OSError):  # it is gone already, which is what we want
                self._send_cipher()
        self.lose("")

    def revoke(self) -> None:
        """The peer's certificate is no longer good: every stream ends at once, then we leave."""
        for tunnel in cast("list[Tunnel]", list(self.streams.values())):
            tunnel.abort(REVOKED, CERT_REVOKED, fr.CANCEL)
        self.say_goodbye(None)
        self.flush()
        self.lose(REVOKED, Loss.REVOKED)

    def dismiss(self, error: str) -> None:
        """End at once, with streams open, but tell the peer not to come back here."""
        if not self.closed and not self.handshaking:
            self.say_goodbye(None)
            self.flush()
        self.lose(error)

    def lose(self, error: str, loss: Loss = Loss.ENDED) -> None:
        """The connection is over, for whatever reason; every stream is reset."""
        if self.closed:
            return
        self.closed = True
        if self._keepalive is not None:
            self._keepalive.cancel()
        self._loop.close(self._sock)
        self._queue.clear()
        self.release_buffer()
        self.fail_streams(fr.CONNECT_ERROR)
        self.on_lost(error, loss)
