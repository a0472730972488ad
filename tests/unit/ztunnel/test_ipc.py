"""The pipe carries messages and descriptors in order, whatever their size."""

from __future__ import annotations

import os

import pytest

from metalmesh.errors import ProtocolError
from metalmesh.ztunnel import ipc
from metalmesh.ztunnel import messages as m


@pytest.fixture
def pipe():
    ours, theirs = ipc.socket_pair()
    ends = ipc.Channel(ours), ipc.Channel(theirs)
    yield ends
    for end in ends:
        end.close()


def test_descriptors_arrive_with_their_message(pipe):
    ours, theirs = pipe
    read_end, write_end = os.pipe()
    workload = m.AddWorkload(uid="u", name="n", namespace="ns", service_account="sa")
    ours.send(m.Ping(request_id=1))
    ours.send(workload, [write_end])
    os.close(write_end)
    (ping, no_fds), (got, fds) = theirs.receive()
    assert (ping, no_fds, got) == (m.Ping(request_id=1), [], workload)
    os.write(fds[0], b"x")
    os.close(fds[0])
    assert os.read(read_end, 10) == b"x"
    assert os.read(read_end, 10) == b""  # the sender's duplicate is closed too
    os.close(read_end)


def test_long_messages_queue_and_arrive_whole(pipe):
    ours, theirs = pipe
    sent = [m.CertificateUnavailable(identity=str(i), error="e" * 300_000) for i in range(5)]
    for message in sent:
        ours.send(message)
    assert ours.wants_write
    got = []
    while len(got) < len(sent):
        got += [message for message, _ in theirs.receive()]
        ours.flush()
    assert got == sent
    assert not ours.wants_write
    assert ours.queued_bytes == 0


def test_end_of_the_other_process_is_seen(pipe):
    ours, theirs = pipe
    ours.close()
    assert theirs.receive() == []
    assert theirs.closed
    theirs.send(m.Ready())  # nobody listens: no error


def test_endless_message_is_refused(pipe, monkeypatch):
    ours, theirs = pipe
    monkeypatch.setattr(ipc, "MESSAGE_BYTES", 100)
    ours.send(m.CertificateUnavailable(identity="i", error="e" * 200))
    with pytest.raises(ProtocolError, match="longer than 100 bytes"):
        theirs.receive()


def test_another_main_process_speaks_after_half_a_message(pipe):
    """The one before died between two packets; what it began is forgotten with its descriptors."""
    ours, theirs = pipe
    ours.send(m.CertificateUnavailable(identity="i", error="e" * 300_000))
    ours._queue.clear()  # the packets that did not fit are lost with their process
    assert theirs.receive() == []
    ours.resume()
    ours.send(m.Ping(request_id=1))
    assert theirs.receive() == [(m.Ping(request_id=1), [])]
