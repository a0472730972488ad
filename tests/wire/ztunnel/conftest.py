"""A stage per test, and two workloads that can talk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ztunnel_stage import Guest, Stage, ztunnel_stage


@pytest.fixture
def stage(tmp_path: Path, evidence) -> Iterator[Stage]:
    with ztunnel_stage(tmp_path) as found:
        evidence.files.append(found.log_path)
        yield found


@pytest.fixture
def pair(stage: Stage) -> tuple[Guest, Guest]:
    """Two workloads of a running, ready ztunnel."""
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    return one, two
