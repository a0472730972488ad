"""When a workload counts as well: thresholds and times, row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.model.resources.probe import Probe, TcpSocket
from metalmesh.routing.health import ProbeState


def state(*, healthy: bool = False, **fields: int) -> ProbeState:
    return ProbeState(Probe(action=TcpSocket(80), **fields), 100.0, healthy=healthy)


@pytest.mark.parametrize(
    ("start", "thresholds", "results", "healthy"),
    [
        (False, (1, 3), "", False),
        (False, (1, 3), "+", True),
        (False, (2, 3), "+", False),
        (False, (2, 3), "+-+", False),
        (False, (2, 3), "-++", True),
        (True, (1, 3), "--", True),
        (True, (1, 3), "--+--", True),
        (True, (1, 3), "---", False),
        (True, (1, 1), "-", False),
        (True, (1, 3), "---+", True),
    ],
)
def test_results_in_a_row_decide(
    start: bool, thresholds: tuple[int, int], results: str, healthy: bool
) -> None:
    success, failure = thresholds
    found = state(healthy=start, success_threshold=success, failure_threshold=failure)
    before = found.healthy
    for now, result in enumerate(results, 100):
        changed = found.record("" if result == "+" else "refused", now)
        assert changed == (found.healthy != before)
        before = found.healthy
    assert found.healthy is healthy


def test_probes_are_due_by_the_clock_and_never_in_the_past() -> None:
    found = state(initial_delay_seconds=7, period_seconds=10)
    assert found.due_at == 107.0
    found.record("", 107.5)
    assert found.due_at == 117.0
    found.record("", 150.0)  # the machine slept
    assert found.due_at == 150.0


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_health_changes_only_after_its_threshold(
    results: list[bool], success: int, failure: int
) -> None:
    found = state(success_threshold=success, failure_threshold=failure)
    for index, result in enumerate(results):
        if found.record("" if result else "x", float(index)):
            needed = success if result else failure
            last = results[max(0, index + 1 - needed) : index + 1]
            assert last == [result] * needed
