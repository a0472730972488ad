"""The pipe between a ztunnel's main process and a data worker.

An AF_UNIX SEQPACKET socket pair; non-blocking on both ends. A message (``messages.encode``) is
cut into packets of at most ``PACKET_BYTES``, each led by one byte: ``.`` closes the message,
``+`` says more follows, ``!`` that another main process speaks and the rest of a message that the
one before it had begun will never come. Descriptors (SCM_RIGHTS) ride on the first packet. Both
event loops watch :meth:`Channel.fileno` for reading and, while :attr:`Channel.wants_write`, for
writing.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from metalmesh.errors import ProtocolError
from metalmesh.ztunnel.messages import Message, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

#: below the kernel's smallest usual limit for one packet (net.core.wmem_default 212992)
PACKET_BYTES: Final = 64 * 1024
#: longest message we put together; a peer that sends more is broken
MESSAGE_BYTES: Final = 64 * 1024 * 1024
#: a workload comes with four descriptors
MAX_FDS: Final = 8

_LAST: Final = b"."
_MORE: Final = b"+"
_RESUME: Final = b"!"


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new pipe: ours (close-on-exec) and the worker's (inheritable)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.set_inheritable(True)
    return ours, theirs


class Channel:
    """Messages over one end of the pipe; takes the socket over.

    ``closed`` becomes true when the other process has gone; nothing is raised for that.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._parts: list[bytes] = []
        self._size = 0
        self._fds: list[int] = []
        self.queued_bytes = 0
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether packets wait for the socket to take them (watch it for writing)."""
        return bool(self._queue)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send or queue a message; descriptors are duplicated, the caller keeps its own."""
        if self.closed:
            return
        data = encode(message)
        own = tuple(os.dup(fd) for fd in fds)
        for start in range(0, max(len(data), 1), PACKET_BYTES):
            part = data[start : start + PACKET_BYTES]
            lead = _LAST if start + PACKET_BYTES >= len(data) else _MORE
            self._queue.append((lead + part, own if start == 0 else ()))
            self.queued_bytes += len(part) + 1
        self.flush()

    def resume(self) -> None:
        """Speak where a process before us may have stopped in the middle of a message."""
        self._queue.append((_RESUME, ()))
        self.flush()

    def flush(self) -> None:
        """Push queued packets until the socket is full."""
        while self._queue and not self.closed:
            packet, fds = self._queue[0]
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self._sock.sendmsg([packet], control, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionError):
                self.closed = True
                return
            self._queue.popleft()
            self.queued_bytes -= len(packet)
            for fd in fds:
                os.close(fd)

    def receive(self) -> list[tuple[Message, list[int]]]:
        """Every message that has arrived, with its descriptors (the caller owns them)."""
        messages: list[tuple[Message, list[int]]] = []
        while not self.closed:
            try:
                packet, ancillary, flags, _ = self._sock.recvmsg(
                    PACKET_BYTES + 1, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            except ConnectionError:
                packet, ancillary, flags = b"", [], 0
            if packet == _RESUME:
                self._parts, self._size = [], 0
                self._drop_fds()
                continue
            self._keep_fds(ancillary)
            if not packet:
                self.closed = True
                self._drop_fds()
                break
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                self._drop_fds()
                raise ProtocolError(
                    f"worker message: packet over {PACKET_BYTES} bytes or {MAX_FDS} fds"
                )
            complete = self._append(packet)
            if complete is not None:
                messages.append(complete)
        return messages

    def _keep_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)

    def _drop_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _append(self, packet: bytes) -> tuple[Message, list[int]] | None:
        self._parts.append(packet[1:])
        self._size += len(packet) - 1
        if self._size > MESSAGE_BYTES:
            raise ProtocolError(f"worker message: longer than {MESSAGE_BYTES} bytes")
        if packet[:1] == _MORE:
            return None
        data, fds = b"".join(self._parts), self._fds
        self._parts, self._fds, self._size = [], [], 0
        return decode(data), fds

    def close(self) -> None:
        """Close the socket and every descriptor that still waits."""
        self.closed = True
        self._drop_fds()
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self._sock.close()
