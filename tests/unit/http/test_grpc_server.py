"""The server's end of gRPC against the ``h2`` library's client end."""

from __future__ import annotations

import struct

import pytest
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.http import grpc_server as grpc
from metalmesh.http.grpc_server import Call, Cancelled, GrpcServer

EMPTY = b"\0\0\0\0\0"


class Client:
    """Speaks to a server, frame by frame."""

    def __init__(self, window: int = 65535) -> None:
        self.server = GrpcServer()
        self.h2 = H2Connection()
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.calls: list[Call | Cancelled] = []
        self.data: dict[int, bytes] = {}
        self.ended: dict[int, dict[str, str]] = {}
        self.reset: set[int] = set()
        self.exchange()

    def exchange(self) -> None:
        """Carry bytes until nobody has any."""
        while True:
            sent, answered = self.h2.data_to_send(), self.server.bytes_to_send()
            if not sent and not answered:
                return
            self.calls += self.server.receive(sent)
            for event in self.h2.receive_data(answered):
                self._note(event)

    def _note(self, event: object) -> None:
        if isinstance(event, DataReceived):
            self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
        elif isinstance(event, ResponseReceived | TrailersReceived):
            fields = {bytes(k).decode(): bytes(v).decode() for k, v in event.headers}
            self.ended.setdefault(event.stream_id, {}).update(fields)
        elif isinstance(event, StreamReset):
            self.reset.add(event.stream_id)

    def call(self, body: bytes = EMPTY, **changes: str) -> int:
        """Make a call; the stream."""
        stream = self.h2.get_next_available_stream_id()
        fields = {":method": "POST", ":scheme": "http", ":authority": "x", ":path": "/S/M"}
        fields |= {"content-type": "application/grpc", **changes}
        self.h2.send_headers(stream, [*fields.items()])
        for start in range(0, len(body), 16384):
            self.h2.send_data(stream, body[start : start + 16384])
        self.h2.end_stream(stream)
        self.exchange()
        return stream


def test_answers_are_streamed_and_end_with_a_status() -> None:
    client = Client()
    stream = client.call(body=b"\0\0\0\0\3abc")
    (call,) = client.calls
    assert isinstance(call, Call)
    assert (call.stream_id, call.path, call.message) == (stream, "/S/M", b"abc")
    assert call.metadata["content-type"] == "application/grpc"
    client.server.send(stream, b"one")
    client.exchange()
    client.server.send(stream, b"two")
    client.server.finish(stream, grpc.OK)
    client.exchange()
    assert client.data[stream] == b"\0\0\0\0\3one\0\0\0\0\3two"
    assert client.ended[stream][":status"] == "200"
    assert client.ended[stream]["grpc-status"] == "0"


def test_refusal_carries_code_and_text() -> None:
    client = Client()
    stream = client.call()
    client.server.finish(stream, grpc.PERMISSION_DENIED, "nö 100%")
    client.exchange()
    assert client.ended[stream]["grpc-status"] == "7"
    assert client.ended[stream]["grpc-message"] == "n%C3%B6 100%25"


def test_client_that_does_not_read_gets_the_newest_message() -> None:
    """The one that was begun is completed; of those after it only the last is kept."""
    client = Client(window=10)
    stream = client.call()
    for text in (b"first message", b"second", b"third"):
        client.server.send(stream, text)
        client.exchange()
    assert len(client.data[stream]) == 10
    client.h2.increment_flow_control_window(1000, stream)
    client.exchange()
    assert client.data[stream] == b"\0\0\0\0\x0dfirst message\0\0\0\0\5third"


def test_cancelled_call_is_told_and_forgotten() -> None:
    client = Client()
    stream = client.call()
    client.h2.reset_stream(stream, 8)
    client.exchange()
    assert client.calls[1:] == [Cancelled(stream)]
    client.server.send(stream, b"too late")
    client.server.finish(stream, grpc.OK)
    client.exchange()
    assert stream not in client.data


@pytest.mark.parametrize(
    "body", [b"", b"\0", b"\1\0\0\0\0", b"\0\0\0\0\1", EMPTY * 2, struct.pack(">BI", 0, 1 << 31)]
)
def test_anything_but_one_plain_message_is_refused(body: bytes) -> None:
    client = Client()
    stream = client.call(body=body)
    assert client.ended[stream]["grpc-status"] == str(grpc.INTERNAL)
    assert client.calls == []


def test_huge_request_is_reset() -> None:
    client = Client()
    stream = client.h2.get_next_available_stream_id()
    fields = {":method": "POST", ":scheme": "http", ":authority": "x", ":path": "/S/M"}
    client.h2.send_headers(stream, [*fields.items()])
    for _ in range(6):
        if stream not in client.reset:
            client.h2.send_data(stream, bytes(16384))
            client.exchange()
    assert stream in client.reset
    assert client.calls == []


@pytest.mark.parametrize("change", [{":method": "GET"}, {"content-type": "text/html"}])
def test_other_http_is_refused(change: dict[str, str]) -> None:
    client = Client()
    stream = client.call(**change)
    assert client.ended[stream][":status"] == "415"


def test_streams_are_bounded() -> None:
    client = Client()
    assert client.h2.remote_settings.max_concurrent_streams == grpc.MAX_STREAMS


@given(st.binary(max_size=400), st.booleans())
def test_garbage_ends_the_connection_only(data: bytes, after_preface: bool) -> None:
    server = GrpcServer()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
    server.receive((preface if after_preface else b"") + data)
    server.bytes_to_send()
