"""Applications that treat their connections in one chosen way, and clients to match."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from tests.support.netns import Netns
from tests.support.waits import WAITS

Serve = Callable[[socket.socket], None]


def echo(peer: socket.socket) -> None:
    """Send everything back; end when the client has ended."""
    while data := peer.recv(65536):
        peer.sendall(data)


def hash_upload(peer: socket.socket) -> None:
    """Read to the end, answer with the digest."""
    digest = hashlib.sha256()
    while data := peer.recv(262144):
        digest.update(data)
    peer.sendall(digest.hexdigest().encode())


def reset_after_request(peer: socket.socket) -> None:
    """Read something, then reset the connection."""
    peer.recv(10)
    reset(peer)


def answer_then_reset(peer: socket.socket) -> None:
    """Answer at once and reset, as a server does that refuses a large upload."""
    peer.recv(1)
    peer.sendall(b"early answer")
    reset(peer)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Observer:
    """Reads until the end and remembers how the end looked."""

    def __init__(self) -> None:
        self.end = ""
        self.started = threading.Event()
        self.done = threading.Event()

    def __call__(self, peer: socket.socket) -> None:
        """Serve one connection."""
        peer.settimeout(WAITS["traffic"].seconds)
        try:
            while peer.recv(65536):
                self.started.set()
            self.end = "fin"
        except ConnectionResetError:
            self.end = "reset"
        except TimeoutError:
            self.end = "timeout"
        self.done.set()


class Stalled:
    """Reads nothing until told to; then reads to the end and answers with the count."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, peer: socket.socket) -> None:
        """Serve one connection."""
        self.go.wait(30)
        total = 0
        while data := peer.recv(262144):
            total += len(data)
        peer.sendall(str(total).encode())


@contextlib.contextmanager
def tcp_app(where: Netns, port: int, serve: Serve, address: str = "0.0.0.0") -> Iterator[list[str]]:
    """Serve every connection in a thread; gives the list of callers' addresses."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = where.do(lambda: socket.create_server((address, port), family=family))
    callers: list[str] = []

    def handle(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            serve(peer)

    def accept() -> None:
        while True:
            try:
                peer, caller = listener.accept()
            except OSError:  # the listener was shut down
                return
            callers.append(caller[0])
            threading.Thread(target=handle, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield callers
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything until FIN."""
    parts = []
    while data := sock.recv(262144):
        parts.append(data)
    return b"".join(parts)


def send_in_background(sock: socket.socket, data: bytes) -> threading.Thread:
    """Send and shut down while somebody else reads."""

    def send() -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def echo_through(client: Netns, address: str, port: int, size: int) -> bool:
    """Send random bytes, read them back, both at once; whether they are the same."""
    data = os.urandom(size)
    with client.connect(address, port) as sock:
        sock.settimeout(60)
        thread = send_in_background(sock, data)
        answer = read_all(sock)
        thread.join()
    return answer == data
