"""The event loop: timers in order, faults contained, descriptors not mixed up."""

from __future__ import annotations

import os
import socket

import pytest

from metalmesh.ztunnel.worker.loop import READ, Deadlines, Loop


class Reader:
    """Reads a socket; may be told to fail."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self.loop, self.sock = loop, sock
        self.got: list[bytes] = []
        self.faults = 0
        self.fails = False

    def on_event(self, events: int) -> None:
        """Read, and stop the loop."""
        self.got.append(self.sock.recv(100))
        if self.fails:
            raise KeyError("bug")
        self.loop.stop()

    def on_fault(self) -> None:
        """Remember it."""
        self.faults += 1
        self.loop.close(self.sock)


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_timers_run_in_order_and_cancelled_ones_do_not(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.02, lambda: (seen.append("late"), loop.stop()))
    loop.call_later(0.01, lambda: seen.append("early"))
    loop.call_later(0.005, lambda: seen.append("never")).cancel()
    loop.run()
    assert seen == ["early", "late"]


def test_fault_of_one_handler_does_not_end_the_loop(loop: Loop, capsys) -> None:
    """It is reported with its traceback, the culprit gives up, others go on."""
    broken_end, broken = socket.socketpair()
    good_end, good = socket.socketpair()
    culprit, other = Reader(loop, broken), Reader(loop, good)
    culprit.fails = True
    loop.watch(broken.fileno(), READ, culprit)
    broken_end.send(b"x")
    loop.call_later(0.02, lambda: (loop.watch(good.fileno(), READ, other), good_end.send(b"y")))
    loop.run()
    assert (culprit.faults, other.got) == (1, [b"y"])
    assert "KeyError: 'bug'" in capsys.readouterr().err
    assert broken.fileno() == -1
    for sock in (broken_end, good_end, good):
        sock.close()


def test_fault_of_a_timer_does_not_end_the_loop(loop: Loop, capsys) -> None:
    loop.call_later(0.0, lambda: 1 // 0)
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_closed_descriptor_is_not_reused_within_a_turn(loop: Loop) -> None:
    """Or a new connection would get the events that were meant for the old one."""
    one, two = socket.socketpair()
    number = one.fileno()

    def replace() -> None:
        loop.close(one)
        fresh = os.open("/dev/null", os.O_RDONLY)
        assert fresh != number
        os.close(fresh)
        loop.stop()

    loop.call_later(0.0, replace)
    loop.run()
    assert one.fileno() == -1
    two.close()


def test_calls_at_the_end_of_a_turn_happen_once(loop: Loop) -> None:
    seen: list[int] = []
    loop.call_later(0.0, lambda: loop.at_turn_end.append(lambda: seen.append(1)))
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert seen == [1]


def test_deadlines_call_what_is_late_and_nothing_else(loop: Loop) -> None:
    late: list[str] = []
    deadlines: Deadlines[str] = Deadlines(loop, 0.02, late.append)
    deadlines.add("in time")
    deadlines.add("late")
    deadlines.discard("in time")
    deadlines.discard("unknown")
    loop.call_later(0.05, lambda: deadlines.add("not yet"))
    loop.call_later(0.06, loop.stop)
    loop.run()
    assert late == ["late"]
    assert len(deadlines) == 1


def test_deadlines_survive_changes_while_expiring(loop: Loop) -> None:
    """What expires may take others with it."""
    deadlines: Deadlines[int]
    seen: list[int] = []

    def expire(item: int) -> None:
        seen.append(item)
        deadlines.discard(item + 1)

    deadlines = Deadlines(loop, 0.01, expire)
    for item in range(4):
        deadlines.add(item)
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert seen == [0, 2]
