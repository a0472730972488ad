"""``systemctl reload``: a new main process takes over beside the old one, and nobody notices."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support.apps import LongConnection, ask, echo_app
from tests.support.mixed_load import MixedLoad
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage, stored

pytestmark = pytest.mark.root
PORT = 8080
ROUNDS = 3
Pair = tuple[Guest, Guest]


def gone(pids: list[int]) -> bool:
    """Whether all the processes have ended."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def reachable(one: Guest, two: Guest) -> bool:
    """Whether an exchange works."""
    return ask(one.netns, two.netns.address, PORT, b"x") == b"x"


def test_reloads_in_a_row_keep_connections_workers_and_control(stage: Stage, pair: Pair) -> None:
    """A connection of every generation lives on, in a worker of its own generation."""
    one, two = pair
    old: list[int] = []
    with echo_app(two.netns, PORT):
        connections: list[LongConnection] = []
        for _ in range(ROUNDS):
            connections.append(LongConnection(one.netns, two.netns.address, PORT))
            assert connections[-1].echo(b"before") == b"before"
            old += stage.worker_pids()
            before = stage.process
            assert stage.reload() == 0
            assert stage.process is not before
            assert all(connection.echo(b"after") == b"after" for connection in connections)
            assert reachable(one, two)
            stage.snapshot(one, two)
        stage.wait_ready()
        flows = stage.dump()["workloadState"][two.workload.uid]["connections"]["inbound"]
        assert len(flows) == ROUNDS
        for connection in connections:
            connection.__exit__()
    wait_until(lambda: gone(old), WAITS["service"], what="old workers gone")
    wait_until(
        lambda: len(stage.systemd.stored) == stored(2),
        WAITS["service"],
        what="those of two workloads, one per worker, none twice, none left behind",
    )


def test_reload_needs_no_certificate_authority(stage: Stage, pair: Pair) -> None:
    """Keys are handed on in memory: new workers serve with the control plane down."""
    one, two = pair
    stage.plane.stop()
    assert stage.reload() == 0
    with echo_app(two.netns, PORT):
        assert reachable(one, two)


def test_failed_reload_changes_nothing(stage: Stage, pair: Pair) -> None:
    """A successor that cannot serve is given up; the old process goes on, and can be reloaded."""
    one, two = pair
    process = stage.process
    assert process is not None
    stage.settings["log_level"] = "deafening"
    assert stage.reload() == 1
    stage.settings["log_level"] = "info"
    stage.settings["state_dir"] = "/proc/none"
    with echo_app(two.netns, PORT):
        assert reachable(one, two)
        assert stage.process is process
        os.kill(process.pid, 0)
        assert stage.reload() == 0
        assert reachable(one, two)


def test_reloads_under_mixed_load_fail_nothing(stage: Stage, pair: Pair) -> None:
    """Short requests, long transfers and idle connections, over pooled tunnels."""
    one, two = pair
    with echo_app(two.netns, PORT):
        with MixedLoad([one.netns], two.netns.address, PORT) as load:
            for _ in range(ROUNDS):
                assert stage.reload() == 0
                stage.snapshot(one, two)
                moment = time.monotonic()
                wait_until(lambda m=moment: load.served_after(m), WAITS["traffic"], what="traffic")
        outcome = load.outcome()
    print(outcome)
    assert not outcome.failures
    assert (outcome.resets, outcome.transfers_lost, outcome.idle_lost) == (0, 0, 0)
