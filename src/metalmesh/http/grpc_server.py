"""The server's end of one gRPC connection, sans I/O: unary requests, streamed answers.

Made for a socket of which we must know who is at the other end, which gRPC's own server does not
tell. Of a stream that is not read only the newest message is kept. Refused: compressed messages,
more than one message per request, requests of more than 64 KiB.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError as H2ProtocolError
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes

MAX_STREAMS: Final = 16
MAX_REQUEST_BYTES: Final = 64 * 1024
_PREFIX: Final = struct.Struct(">BI")

OK: Final = 0
INVALID_ARGUMENT: Final = 3
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14


@dataclass(frozen=True, slots=True)
class Call:
    """A complete request; answer it with ``send`` and ``finish``."""

    stream_id: int
    #: ``/package.Service/Method``
    path: str
    metadata: dict[str, str]
    message: bytes


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client takes no more of an answer."""

    stream_id: int


@dataclass(slots=True)
class _Stream:
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    #: a message of which a part has been sent
    sending: bytes = b""
    #: the newest message after it
    newest: bytes = b""
    status: tuple[int, str] | None = None


class GrpcServer:
    """One connection."""

    def __init__(self) -> None:
        config = H2Configuration(client_side=False, header_encoding="utf-8")
        self._h2 = H2Connection(config)
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self._streams: dict[int, _Stream] = {}
        #: nothing more can be said or heard; send what is left and close
        self.closed = False

    def receive(self, data: bytes) -> list[Call | Cancelled]:
        """Bytes of the client."""
        found: list[Call | Cancelled] = []
        try:
            for event in self._h2.receive_data(data):
                found += self._on_event(event)
        except H2ProtocolError:
            self.closed = True  # h2 has put GOAWAY into what is to be sent
        return found

    def _on_event(self, event: object) -> list[Call | Cancelled]:
        match event:
            case RequestReceived(stream_id=int(stream_id), headers=headers):
                fields = {str(name): str(value) for name, value in headers or ()}
                self._streams[stream_id] = _Stream(fields)
            case DataReceived(stream_id=int(stream_id), data=data):
                self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
                self._collect(stream_id, data or b"")
            case StreamEnded(stream_id=int(stream_id)):
                return self._complete(stream_id)
            case StreamReset(stream_id=int(stream_id)):
                if self._streams.pop(stream_id, None) is not None:
                    return [Cancelled(stream_id)]
            case WindowUpdated():
                for stream_id in tuple(self._streams):
                    self._push(stream_id)
            case ConnectionTerminated():
                self.closed = True
        return []

    def _collect(self, stream_id: int, data: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.body += data
        if len(stream.body) > MAX_REQUEST_BYTES:
            del self._streams[stream_id]
            self._h2.reset_stream(stream_id, ErrorCodes.ENHANCE_YOUR_CALM)

    def _complete(self, stream_id: int) -> list[Call | Cancelled]:
        stream = self._streams.get(stream_id)
        if stream is None:
            return []
        headers, body = stream.headers, bytes(stream.body)
        if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith(
            "application/grpc"
        ):
            del self._streams[stream_id]
            self._h2.send_headers(stream_id, [(":status", "415")], end_stream=True)
            return []
        if len(body) < _PREFIX.size or _PREFIX.unpack_from(body) != (0, len(body) - _PREFIX.size):
            self.finish(stream_id, INTERNAL, "exactly one uncompressed message is expected")
            return []
        metadata = {name: value for name, value in headers.items() if name[0] != ":"}
        return [Call(stream_id, headers.get(":path", ""), metadata, body[_PREFIX.size :])]

    # --- answering
    def send(self, stream_id: int, message: bytes) -> None:
        """Send a message, or as soon as the client takes it; a newer one replaces it until then."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.newest = _PREFIX.pack(0, len(message)) + message
            self._push(stream_id)

    def finish(self, stream_id: int, code: int, text: str = "") -> None:
        """End a call, when what was sent before has gone."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.status = (code, text)
            self._push(stream_id)

    def _push(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        try:
            while stream.sending or stream.newest:
                if not stream.sending:
                    stream.sending, stream.newest = stream.newest, b""
                    self._begin(stream_id, stream)
                room = min(
                    self._h2.local_flow_control_window(stream_id),
                    self._h2.max_outbound_frame_size,
                )
                if room <= 0:
                    return
                self._h2.send_data(stream_id, stream.sending[:room])
                stream.sending = stream.sending[room:]
            if stream.status is not None:
                self._end(stream_id, stream, *stream.status)
        except (StreamClosedError, H2ProtocolError):
            self._streams.pop(stream_id, None)

    def _begin(self, stream_id: int, stream: _Stream) -> None:
        if stream.headers.pop(":path", None) is not None:  # once
            fields = [(":status", "200"), ("content-type", "application/grpc")]
            self._h2.send_headers(stream_id, fields)

    def _end(self, stream_id: int, stream: _Stream, code: int, text: str) -> None:
        self._begin(stream_id, stream)
        trailers = [("grpc-status", str(code))]
        if text:
            trailers.append(("grpc-message", quote(text, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")))
        self._h2.send_headers(stream_id, trailers, end_stream=True)
        del self._streams[stream_id]

    def bytes_to_send(self) -> bytes:
        """What is to be written now."""
        return bytes(self._h2.data_to_send())
