"""One CONNECT stream: its flow-control windows and the hooks its owner fills in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.hbone.mux import Mux

#: why a stream does not read from its application at the moment
RUNNING: Final = 0
STREAM_BLOCKED: Final = 1  # its own send window is used up
CONNECTION_BLOCKED: Final = 2  # the connection's window or its socket is full


class Stream:
    """State shared by both ends of a stream; the subclass owns the application's socket."""

    __slots__ = (
        "blocked",
        "chunks",
        "local_end",
        "mux",
        "opened",
        "recv_window",
        "remote_end",
        "send_window",
        "stream_id",
        "touched",
        "uncredited",
    )

    def __init__(self) -> None:
        #: the connection; ``None`` before the stream is opened and after it is over
        self.mux: Mux | None = None
        self.stream_id = 0
        #: bytes we may still send
        self.send_window = 0
        #: bytes the peer may still send
        self.recv_window = 0
        #: bytes the application took and the peer has not been told about
        self.uncredited = 0
        self.local_end = False
        self.remote_end = False
        #: the CONNECT was answered with 200
        self.opened = False
        self.blocked = RUNNING
        #: in the list of streams that got something in the current ``receive``
        self.touched = False
        #: views of the receive buffer, valid until :meth:`deliver` returns
        self.chunks: list[memoryview] = []

    def deliver(self) -> None:
        """``chunks`` (maybe none) arrived, and the end of the stream if ``remote_end``."""
        raise NotImplementedError

    def on_response(self, status: str, headers: Mapping[str, str]) -> None:
        """The answer to our CONNECT arrived (client only)."""
        raise NotImplementedError

    def resume(self) -> None:
        """Sending may go on."""
        raise NotImplementedError

    def on_reset(self, code: int) -> None:
        """The peer reset the stream, or the connection was lost; ``chunks`` may hold data."""
        raise NotImplementedError
