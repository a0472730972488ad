"""Copying between two sockets, on real socket pairs."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from metalmesh.ztunnel.worker import flow as fl
from metalmesh.ztunnel.worker.logs import LogWriter
from metalmesh.ztunnel.worker.loop import Loop
from metalmesh.ztunnel.worker.metrics import Metrics
from metalmesh.ztunnel.worker.pipe import Pipe


class Bench:
    """A pipe between ``app`` and ``peer``, and the loop in a thread."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.null = os.open(os.devnull, os.O_WRONLY)
        recorder = fl.Recorder(self.loop, LogWriter(self.loop, self.null), Metrics())
        self.flow = fl.Flow(recorder, fl.OUTBOUND, "uid", "a:1")
        self.flow.open()
        self.app, app_end = socket.socketpair()
        self.peer, peer_end = socket.socketpair()
        for end in (app_end, peer_end):
            end.settimeout(0)
        self.over: list[Pipe] = []
        self.pipe = Pipe(self.loop, self.flow, self._ended)
        self.pipe.start(app_end, peer_end)
        for end in (self.app, self.peer):
            end.settimeout(5)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _ended(self, pipe: Pipe) -> None:
        self.over.append(pipe)
        self.loop.stop()

    def close(self) -> None:
        self.app.close()
        self.peer.close()
        self.thread.join(5)
        assert not self.thread.is_alive()
        os.close(self.null)


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.close()


def test_bytes_go_both_ways_and_are_counted(bench: Bench) -> None:
    bench.app.sendall(b"request")
    assert bench.peer.recv(100) == b"request"
    bench.peer.sendall(b"answer!!")
    assert bench.app.recv(100) == b"answer!!"
    assert (bench.flow.from_app, bench.flow.to_app) == (7, 8)


def test_each_direction_ends_by_itself(bench: Bench) -> None:
    bench.app.sendall(b"last")
    bench.app.shutdown(socket.SHUT_WR)
    assert bench.peer.recv(100) == b"last"
    assert bench.peer.recv(100) == b""
    bench.peer.sendall(b"still here")
    assert bench.app.recv(100) == b"still here"
    bench.peer.shutdown(socket.SHUT_WR)
    assert bench.app.recv(100) == b""
    bench.thread.join(5)
    assert bench.over == [bench.pipe]


def test_slow_reader_stops_the_sender_and_loses_nothing(bench: Bench) -> None:
    data = os.urandom(4_000_000)
    sender = threading.Thread(target=lambda: (bench.app.sendall(data), bench.app.shutdown(1)))
    sender.start()
    sender.join(0.2)
    assert sender.is_alive(), "everything was swallowed"
    got = bytearray()
    while part := bench.peer.recv(65536):
        got += part
    sender.join()
    assert bytes(got) == data


def test_vanished_reader_ends_the_pipe(bench: Bench) -> None:
    """What the other side still said is passed on first."""
    bench.peer.sendall(b"early answer")
    bench.peer.close()
    bench.app.sendall(b"x")
    assert bench.app.recv(100) == b"early answer"
    assert bench.app.recv(100) == b""
