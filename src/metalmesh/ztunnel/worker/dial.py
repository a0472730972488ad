"""Connecting to an application or a plain destination without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.constants import CONNECT_TIMEOUT_SECONDS
from metalmesh.errors import NetworkError
from metalmesh.net.sockets import (
    bind_source,
    finish_connect,
    set_transparent,
    start_connect,
    upstream_socket,
)
from metalmesh.ztunnel.worker.loop import WRITE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from metalmesh.ztunnel.worker.context import Context

_BIND_ATTEMPTS: Final = 4


class Dial:
    """One attempt; ``done(socket, "")`` or ``done(None, error)`` unless cancelled."""

    __slots__ = ("_context", "_done", "_sock")

    def __init__(
        self, context: Context, done: Callable[[socket.SocketType | None, str], None]
    ) -> None:
        self._context = context
        self._done: Callable[[socket.SocketType | None, str], None] | None = done
        self._sock: socket.SocketType | None = None

    def start(
        self, netns_fd: int, address: str, port: int, source: str = "", avoid_port: int = 0
    ) -> None:
        """Connect from ``source``, for a local application, or from our own address if empty.

        ``avoid_port`` is a port of ``source`` that must not be used: with it the connection
        would look to the kernel like the one it continues.
        """
        context = self._context
        try:
            context.netns.enter(netns_fd)
            sock = upstream_socket(address, local=bool(source))
        except (OSError, NetworkError) as error:
            self._finish(None, f"connection failed: {error}")
            return
        self._sock = sock
        try:
            if source and source != address and (":" in source) == (":" in address):
                self._bind(sock, source, avoid_port)
            if start_connect(sock, address, port):
                self._finish(sock, "")
                return
        except OSError as error:
            self._fail(f"connection failed: {error}")
            return
        context.loop.watch(sock.fileno(), WRITE, self)
        context.dials.add(self)

    @staticmethod
    def _bind(sock: socket.SocketType, source: str, avoid_port: int) -> None:
        if not avoid_port:
            bind_source(sock, source)
            return
        set_transparent(sock)
        for _ in range(_BIND_ATTEMPTS):
            sock.bind((source, 0))
            if sock.getsockname()[1] != avoid_port:
                return
        raise OSError(f"no free port of {source} but {avoid_port}")

    def on_event(self, _events: int) -> None:
        """Connected or refused."""
        sock = self._sock
        if sock is None:
            return
        try:
            finish_connect(sock)
        except OSError as error:
            self._fail(f"connection failed: {error}")
            return
        self._context.dials.discard(self)
        self._context.loop.unwatch(sock.fileno())
        self._finish(sock, "")

    def on_fault(self) -> None:
        """A bug of ours ends this connection only."""
        self._fail("internal error")

    def expire(self) -> None:
        """Too slow."""
        self._fail(f"connection timed out: no answer within {CONNECT_TIMEOUT_SECONDS:.0f} s")

    def cancel(self) -> None:
        """Nobody wants the connection any more."""
        self._done = None
        self._fail("")

    def _fail(self, error: str) -> None:
        sock, self._sock = self._sock, None
        self._context.dials.discard(self)
        if sock is not None:
            self._context.loop.close(sock)
        self._finish(None, error)

    def _finish(self, sock: socket.SocketType | None, error: str) -> None:
        done, self._done = self._done, None
        self._sock = None
        if done is not None:
            done(sock, error)
