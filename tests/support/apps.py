"""Applications that know nothing of a mesh: plain TCP in a network namespace."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Iterator

from tests.support.netns import Netns
from tests.support.waits import WAITS


def new_marker() -> bytes:
    """Random text that occurs nowhere else."""
    return f"marker-{secrets.token_hex(16)}".encode()


class EchoApp:
    """Echoes every connection until its end; remembers who called."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._threads: list[threading.Thread] = []
        #: source address of every accepted connection.
        self.callers: list[str] = []

    def serve(self) -> None:
        """Accept until the listener is shut down."""
        while True:
            try:
                peer, (address, *_) = self._listener.accept()
            except OSError:  # the listener was shut down
                return
            self.callers.append(address.removeprefix("::ffff:"))
            thread = threading.Thread(target=self._echo, args=(peer,), daemon=True)
            thread.start()
            self._threads.append(thread)

    @staticmethod
    def _echo(peer: socket.socket) -> None:
        with peer, contextlib.suppress(ConnectionError):
            while data := peer.recv(65536):
                peer.sendall(data)


@contextlib.contextmanager
def echo_app(where: Netns, port: int) -> Iterator[EchoApp]:
    """An echo server on all addresses of a namespace, of both families, during the block."""
    listener = where.do(
        lambda: socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
        )
    )
    app = EchoApp(listener)
    thread = threading.Thread(target=app.serve)
    thread.start()
    try:
        yield app
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def ask(client: Netns, address: str, port: int, message: bytes) -> bytes:
    """Connect, send, end, read to the end: the echo, or empty when the connection failed."""
    try:
        with client.connect(address, port, timeout_seconds=WAITS["refused"].seconds) as connection:
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            answer = bytearray()
            while data := connection.recv(65536):
                answer += data
            return bytes(answer)
    except OSError:  # reset before, while or after we ended our side
        return b""


class LongConnection:
    """A connection that stays open; ``alive`` says whether it still carries data."""

    def __init__(self, client: Netns, address: str, port: int) -> None:
        self._socket = client.connect(address, port)
        self._socket.settimeout(WAITS["traffic"].seconds)

    def __enter__(self) -> LongConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def echo(self, message: bytes) -> bytes:
        """Send a message over the connection and read as much back; shorter when it ended."""
        self._socket.sendall(message)
        answer = bytearray()
        while len(answer) < len(message):
            data = self._socket.recv(65536)
            if not data:
                break
            answer += data
        return bytes(answer)

    def wait_closed(self) -> bool:
        """Whether the other side ends the connection within the wait of a policy."""
        self._socket.settimeout(WAITS["policy"].seconds)
        try:
            return self._socket.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False
