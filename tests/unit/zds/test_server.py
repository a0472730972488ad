"""The agent's end of ZDS as a conversation: packets and instants in, events out."""

from __future__ import annotations

import pytest

from metalmesh.errors import ProtocolError
from metalmesh.zds.messages import (
    Ack,
    AddWorkload,
    DelWorkload,
    KeepWorkload,
    SnapshotSent,
    encode_hello,
    encode_response,
)
from metalmesh.zds.server import (
    DEADLINE_SECONDS,
    RETRY_SECONDS,
    Acknowledged,
    Close,
    Overdue,
    Refused,
    Send,
    ZdsServer,
)

A = AddWorkload("uid-a", "a", "demo", "sa")
B = AddWorkload("uid-b", "b", "demo", "sb")
OK = encode_response(Ack())
NO = encode_response(Ack("failure to start proxy : test"))


class Conversation:
    """A server, and a clock that stands still unless told."""

    def __init__(self) -> None:
        self.server = ZdsServer()
        self.now = 100.0

    def hello(self, number: int) -> list:
        self.server.connected(number, self.now)
        self.server.received(number, encode_hello(), self.now)
        return self.server.events()

    def reply(self, number: int, packet: bytes = OK) -> list:
        self.server.received(number, packet, self.now)
        return self.server.events()

    def add(self, workload) -> list:
        self.server.add(workload, self.now)
        return self.server.events()

    def remove(self, uid: str) -> list:
        self.server.remove(uid, self.now)
        return self.server.events()

    def wait(self, seconds: float) -> list:
        self.now += seconds
        self.server.handle_deadline(self.now)
        return self.server.events()


@pytest.fixture
def talk():
    return Conversation()


def test_nothing_is_sent_before_hello(talk):
    talk.server.add(A, talk.now)
    talk.server.connected(1, talk.now)
    assert talk.server.events() == []
    assert talk.server.ready_connections == 0


def test_snapshot_is_everything_one_at_a_time_then_the_end_once(talk):
    talk.add(A)
    talk.add(B)
    assert talk.hello(1) == [Send(1, A)]
    assert talk.reply(1) == [Acknowledged(1, A), Send(1, B)]
    assert talk.reply(1) == [Acknowledged(1, B), Send(1, SnapshotSent())]
    assert talk.reply(1) == [Acknowledged(1, SnapshotSent())]
    assert talk.server.next_deadline() is None


def test_change_during_the_snapshot_follows_it(talk):
    talk.add(A)
    talk.hello(1)
    assert talk.add(B) == []
    assert talk.remove("uid-a") == []
    assert [event.request for event in talk.reply(1) if isinstance(event, Send)] == [SnapshotSent()]
    assert [event.request for event in talk.reply(1) if isinstance(event, Send)] == [B]
    assert [event.request for event in talk.reply(1) if isinstance(event, Send)] == [
        DelWorkload("uid-a")
    ]


def test_workload_removed_before_its_turn_is_never_added(talk):
    talk.add(A)
    talk.add(B)
    talk.hello(1)
    talk.remove("uid-b")
    sent = [event.request for event in talk.reply(1) if isinstance(event, Send)]
    assert sent == [SnapshotSent()]


def test_keep_is_said_in_snapshots_only(talk):
    keep = KeepWorkload("uid-k")
    talk.hello(1)
    talk.reply(1)
    assert talk.add(keep) == []
    assert talk.hello(2) == [Send(2, keep)]


def test_addition_goes_to_the_newest_and_removal_to_all(talk):
    for number in (1, 2):
        talk.hello(number)
        talk.reply(number)
    assert talk.add(A) == [Send(2, A)]
    talk.reply(2)
    talk.hello(3)
    talk.reply(3)
    talk.reply(3)
    assert {event.connection for event in talk.remove("uid-a")} == {2, 3}


def test_connection_without_hello_is_not_the_newest(talk):
    talk.hello(1)
    talk.reply(1)
    talk.server.connected(2, talk.now)
    assert talk.add(A) == [Send(1, A)]


def test_remaining_ztunnel_catches_up_when_the_newest_leaves(talk):
    for number in (1, 2):
        talk.hello(number)
        talk.reply(number)
    talk.add(A)
    talk.server.disconnected(2, talk.now)
    assert talk.server.events() == [Send(1, A)]


def test_refused_addition_is_sent_again_until_it_is_done(talk):
    talk.hello(1)
    talk.reply(1)
    talk.add(A)
    assert talk.reply(1, NO) == [Refused(1, A, "failure to start proxy : test")]
    assert talk.wait(RETRY_SECONDS - 0.1) == []
    assert talk.wait(0.1) == [Send(1, A)]
    talk.reply(1)
    assert talk.server.next_deadline() is None


def test_refused_addition_is_not_repeated_once_removed(talk):
    talk.hello(1)
    talk.reply(1)
    talk.add(A)
    talk.reply(1, NO)
    assert talk.remove("uid-a") == [Send(1, DelWorkload("uid-a"))]
    talk.reply(1)
    assert talk.wait(2 * RETRY_SECONDS) == []


def test_failure_to_send_counts_as_refusal_and_does_not_block(talk):
    talk.add(A)
    talk.add(B)
    talk.hello(1)
    talk.server.failed(1, "netns gone", talk.now)
    assert talk.server.events() == [Refused(1, A, "netns gone"), Send(1, B)]


def test_silence_after_a_request_is_reported_once_and_keeps_the_connection(talk):
    talk.add(A)
    talk.hello(1)
    assert talk.wait(DEADLINE_SECONDS) == [Overdue(1, A)]
    assert talk.wait(DEADLINE_SECONDS) == []
    assert talk.reply(1) == [Acknowledged(1, A), Send(1, SnapshotSent())]


def test_silence_instead_of_hello_ends_the_connection(talk):
    talk.server.connected(1, talk.now)
    assert talk.server.next_deadline() == talk.now + DEADLINE_SECONDS
    assert talk.wait(DEADLINE_SECONDS) == [Close(1, "no hello within 5 s")]


@pytest.mark.parametrize("packet", [OK, b"", b"\xff"])
def test_answer_nobody_asked_for_is_a_protocol_error(talk, packet):
    talk.hello(1)
    talk.reply(1)
    with pytest.raises(ProtocolError):
        talk.reply(1, packet)


def test_changed_account_is_removed_and_added(talk):
    """The agent's way to change a workload; a duplicate Add would be a no-op for a ztunnel."""
    talk.hello(1)
    talk.reply(1)
    talk.add(A)
    talk.reply(1)
    other = AddWorkload("uid-a", "a", "demo", "other")
    assert talk.remove("uid-a") == [Send(1, DelWorkload("uid-a"))]
    assert talk.add(other) == []
    assert talk.reply(1) == [Acknowledged(1, DelWorkload("uid-a")), Send(1, other)]
