"""A worker and the main process it hears nothing of."""

from __future__ import annotations

import gc
import threading

import pytest

from metalmesh.ztunnel import ipc
from metalmesh.ztunnel import messages as m
from metalmesh.ztunnel.worker import app

WAIT_SECONDS = 10.0


@pytest.fixture
def main(monkeypatch):
    """Main's end of the pipe of a worker that runs in a thread, with little patience."""
    monkeypatch.setattr(app, "_SILENCE_SECONDS", 0.05)
    ours, theirs = ipc.socket_pair()
    worker = app.Worker(ipc.Channel(theirs))
    thread = threading.Thread(target=worker.run)
    thread.start()
    channel = ipc.Channel(ours)
    yield channel, thread
    channel.close()
    thread.join(WAIT_SECONDS)
    gc.unfreeze()
    assert not thread.is_alive()


def heard(channel: ipc.Channel) -> list[m.Message]:
    return [message for message, _ in channel.receive()]


def test_worker_leaves_when_main_is_silent_though_its_pipe_is_open(main) -> None:
    """The pipe is kept by systemd for the next main process; should none come, nobody tells us of
    policies."""
    channel, thread = main
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    said = heard(channel)
    assert isinstance(said[0], m.Ready)
    assert m.Drained() in said


def test_worker_leaves_when_the_pipe_is_closed(main) -> None:
    channel, thread = main
    channel.close()
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
