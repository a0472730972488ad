"""The ztunnel's main process with real workers, sockets, rules and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import ask, echo_app
from tests.support.ztunnel_stage import Guest, Stage, ztunnel_stage

pytestmark = pytest.mark.root
PORT = 8080


@pytest.fixture
def stage(tmp_path: Path, evidence) -> Iterator[Stage]:
    with ztunnel_stage(tmp_path) as found:
        evidence.files.append(found.log_path)
        yield found


def serve(stage: Stage) -> tuple[Guest, Guest]:
    """Two workloads that can talk."""
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    return one, two


def test_two_workloads_of_a_node_talk_by_hbone(stage: Stage) -> None:
    one, two = serve(stage)
    with echo_app(two.netns, PORT) as app:
        assert ask(one.netns, two.netns.address, PORT, b"hello") == b"hello"
        assert app.callers == [one.netns.address]
    line = stage.wait_log("connection complete", 'direction="outbound"')
    assert 'dst.identity="spiffe://cluster.local/ns/shop/sa/sa2"' in line
