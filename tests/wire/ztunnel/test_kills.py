"""``kill -9`` under mixed load: who loses what. ``python -m tests.chaos kills`` has the figures."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.apps import echo_app
from tests.support.mixed_load import SHORT_CLIENTS, TRANSFERS, MixedLoad
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage

pytestmark = pytest.mark.root
PORT = 8080
ROUNDS = 3
WORKERS = 2
Pair = tuple[Guest, Guest]


def streams_of(pid: int, one: Guest, two: Guest) -> int:
    """Connections between applications and a worker, at both ends."""
    command = ("ss", "-Htnp", "state", "established", "( sport = :15001 or dport = :8080 )")
    lines = [line for guest in (one, two) for line in guest.netns.run(*command).splitlines()]
    return sum(f"pid={pid}," in line for line in lines)


def test_dead_worker_takes_its_own_streams_only(stage: Stage, pair: Pair) -> None:
    """Nobody is refused, and everything else goes on."""
    one, two = pair
    with echo_app(two.netns, PORT):
        for _ in range(ROUNDS):
            with MixedLoad([one.netns], two.netns.address, PORT) as load:
                victim, *_ = stage.worker_pids()
                held = streams_of(victim, one, two)
                os.kill(victim, signal.SIGKILL)
                wait_until(
                    lambda v=victim: (
                        v not in stage.worker_pids() and len(stage.worker_pids()) == WORKERS
                    ),
                    WAITS["crash_restart"],
                    what="worker replaced",
                )
                stage.wait_ready()
            outcome = load.outcome()
            lost = len(outcome.failures) + outcome.transfers_lost + outcome.idle_lost
            # what every client was about to begin comes on top of what was counted
            assert lost <= held + SHORT_CLIENTS + TRANSFERS, outcome
            assert not any("Refused" in text for text in outcome.failures)


def test_dead_main_takes_nothing(stage: Stage, pair: Pair) -> None:
    """Workers wait for the next one, which adopts them; the load does not notice."""
    one, two = pair
    with echo_app(two.netns, PORT):
        with MixedLoad([one.netns], two.netns.address, PORT) as load:
            for _ in range(ROUNDS):
                stage.stop(signal.SIGKILL)
                stage.start()
                stage.snapshot(one, two)
                stage.wait_ready()
        outcome = load.outcome()
    assert not outcome.failures
    assert (outcome.resets, outcome.transfers_lost, outcome.idle_lost) == (0, 0, 0)
