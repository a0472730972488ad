"""HBONE peers written with ``ssl`` and the ``h2`` library: independent of the product.

``HboneServer`` echoes what it is told over CONNECT streams; ``HboneClient`` opens them. Rogue
variants are made by giving them other credentials, versions, protocols or requests.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Sequence
from types import TracebackType

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

from tests.support.waits import WAITS

Headers = Sequence[tuple[str, str]]


class HboneServer:
    """Accepts one connection after the other and echoes the data of every stream."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        self._listener = listener
        self._context = context
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> HboneServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:  # the listener was shut down by __exit__
                return
            with plain, contextlib.suppress(ssl.SSLError, ConnectionError):
                self._talk(self._context.wrap_socket(plain, server_side=True))

    @staticmethod
    def _talk(peer: ssl.SSLSocket) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        peer.sendall(connection.data_to_send())
        while data := peer.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    connection.send_headers(event.stream_id, [(":status", "200")])
                elif isinstance(event, DataReceived):
                    connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                    connection.send_data(event.stream_id, event.data)
                elif isinstance(event, StreamEnded):
                    connection.end_stream(event.stream_id)
            peer.sendall(connection.data_to_send())


class HboneClient:
    """One TLS connection to an HBONE server and the streams on it."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        plain.settimeout(WAITS["traffic"].seconds)
        self.socket = context.wrap_socket(plain)
        self._connection = H2Connection(H2Configuration(client_side=True))
        self._connection.initiate_connection()
        self._flush()

    def __enter__(self) -> HboneClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def _flush(self) -> None:
        self.socket.sendall(self._connection.data_to_send())

    def request(self, headers: Headers) -> tuple[int, str]:
        """Send a request; return its stream and ``:status`` (``reset`` or ``closed`` without)."""
        stream = self._connection.get_next_available_stream_id()
        self._connection.send_headers(stream, list(headers))
        self._flush()
        while data := self.socket.recv(65536):
            for event in self._connection.receive_data(data):
                if isinstance(event, ResponseReceived) and event.stream_id == stream:
                    fields = {bytes(k): bytes(v) for k, v in event.headers}
                    return stream, fields[b":status"].decode()
                if isinstance(event, StreamReset) and event.stream_id == stream:
                    return stream, "reset"
            self._flush()
        return stream, "closed"

    def connect(self, authority: str, *more: tuple[str, str]) -> tuple[int, str]:
        """Send a CONNECT request for the authority."""
        return self.request([(":method", "CONNECT"), (":authority", authority), *more])

    def flood(self, authority: str, count: int) -> list[str]:
        """Open many streams before the server's limit is known here; how each was answered."""
        fields = [(":method", "CONNECT"), (":authority", authority)]
        opened = [1 + 2 * number for number in range(count)]
        for stream in opened:
            self._connection.send_headers(stream, fields)
        self._flush()
        answers: dict[int, str] = {}
        while len(answers) < count and (data := self.socket.recv(65536)):
            for event in self._connection.receive_data(data):
                if isinstance(event, ResponseReceived):
                    answers[event.stream_id] = bytes(dict(event.headers)[b":status"]).decode()
                elif isinstance(event, StreamReset):
                    answers[event.stream_id] = "reset"
            self._flush()
        return [answers.get(stream, "closed") for stream in opened]

    def wait_goaway(self) -> int:
        """The error code of the server's GOAWAY; -1 if it closed without one."""
        while data := self.socket.recv(65536):
            for event in self._connection.receive_data(data):
                if isinstance(event, ConnectionTerminated):
                    return int(event.error_code or 0)
        return -1

    def exchange(self, stream: int, data: bytes) -> bytes:
        """Send data, end the stream, return everything that comes back until its end."""
        self._connection.send_data(stream, data, end_stream=True)
        self._flush()
        answer = bytearray()
        while received := self.socket.recv(65536):
            for event in self._connection.receive_data(received):
                if isinstance(event, DataReceived) and event.stream_id == stream:
                    answer += event.data
                    self._connection.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, StreamEnded | StreamReset) and event.stream_id == stream:
                    return bytes(answer)
            self._flush()
        return bytes(answer)
