"""What the node agent may ask of a running ztunnel (istio-facts 9.1 and 9.2)."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from metalmesh.constants import PORT_HBONE
from metalmesh.zds.messages import AddWorkload, DelWorkload, KeepWorkload, SnapshotSent
from tests.support.apps import ask, echo_app
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage, stored

pytestmark = pytest.mark.root
PORT = 8080
Pair = tuple[Guest, Guest]


def listens(guest: Guest, port: int = PORT_HBONE) -> bool:
    """Whether somebody accepts on a port of the workload."""
    try:
        guest.netns.connect(guest.netns.address, port, timeout_seconds=1).close()
    except OSError:
        return False
    return True


def test_same_namespace_again_changes_nothing(stage: Stage, pair: Pair) -> None:
    """Not even open connections notice."""
    one, two = pair
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        for guest in pair:
            assert stage.agent.ask(guest.announcement, guest.netns.path) == ""
        connection.sendall(b"b")
        assert connection.recv(1) == b"b"
    assert "workload_manager_proxies_started_total 2" in stage.metrics()


def test_other_namespace_replaces_the_first(stage: Stage, pair: Pair) -> None:
    """A workload that was made anew: the old sockets must not linger in the store either."""
    one, two = pair
    before = {entry for entry in stage.systemd.stored if not entry[0].startswith("worker-")}
    assert f"served for workload {two.workload.uid} already" in stage.agent.ask(
        one.announcement, two.netns.path
    )
    assert listens(two), "one identity per namespace: the second is refused, the first stays"
    stage.forget(two)
    assert stage.agent.ask(one.announcement, two.netns.path) == ""
    assert not listens(one)
    assert listens(two)
    wait_until(
        lambda: len(stage.systemd.stored) == stored(1), WAITS["service"], what="store renewed"
    )
    assert before.isdisjoint(stage.systemd.stored)


def test_removed_workload_is_closed_at_once(stage: Stage, pair: Pair) -> None:
    one, two = pair
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        stage.forget(two)
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        wait_until(lambda: not listens(two), WAITS["service"], what="listeners closed")
    assert "workload_manager_active_proxy_count 1" in stage.metrics()
    assert len(stage.systemd.stored) == stored(1), "one workload, two workers"


def test_workload_that_cannot_be_served_is_refused_and_tried_again(stage: Stage) -> None:
    """Its port is taken; as soon as it is free the ztunnel serves, without being asked again."""
    guest = stage.add_guest()
    stage.plane.set(guest.workload)
    stage.plane.start()
    stage.start()
    stage.agent.accept()
    with guest.netns.listen(PORT_HBONE, address="0.0.0.0"):
        error = stage.agent.ask(guest.announcement, guest.netns.path)
        assert error.startswith("failure to start proxy : ")
        assert f"port {PORT_HBONE}" in error
        assert stage.agent.ask(SnapshotSent()) == ""
        pending = (500, "not ready, pending: workload proxy manager")
        wait_until(lambda: stage.readiness() == pending, WAITS["service"], what="xDS synced")
        assert "workload_manager_pending_proxy_count 1" in stage.metrics()
    stage.wait_ready()
    assert listens(guest)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(AddWorkload("u", "n", "ns", "sa"), "0 descriptors", id="add without"),
        pytest.param(KeepWorkload("u"), "after the snapshot", id="keep after the snapshot"),
        pytest.param(SnapshotSent(), "twice", id="second snapshot"),
    ],
)
def test_broken_request_is_answered_and_ends_the_conversation_only(
    stage: Stage, pair: Pair, request_: AddWorkload, message: str
) -> None:
    """The ztunnel comes back for a new snapshot; traffic goes on all the time."""
    one, two = pair
    assert message in stage.agent.ask(request_)
    with echo_app(two.netns, PORT):
        assert ask(one.netns, two.netns.address, PORT, b"x") == b"x"
        stage.snapshot(one, two)
        stage.wait_ready()
        assert ask(one.netns, two.netns.address, PORT, b"x") == b"x"


def test_unknown_workload_waits_for_the_control_plane_and_then_fails(
    stage: Stage, pair: Pair
) -> None:
    """Its name is on the node, its account is not what the control plane says: no identity."""
    one, two = pair
    liar = replace(one.announcement, service_account="admin")
    stage.forget(one)
    assert stage.agent.ask(liar, one.netns.path) == ""
    with echo_app(two.netns, PORT) as app, one.netns.connect(two.netns.address, PORT) as connection:
        connection.settimeout(WAITS["traffic"].seconds)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        assert app.callers == []
    stage.wait_log("failed to fetch information about local workload: admin.shop (w1)")
    assert not any("admin" in name for name in stage.plane.signed)


def test_deleted_and_unknown_uids_are_no_error(stage: Stage, pair: Pair) -> None:
    del pair
    assert stage.agent.ask(DelWorkload("nobody")) == ""


def test_silent_peer_of_the_socket_does_not_hold_the_ztunnel(stage: Stage, pair: Pair) -> None:
    """An agent that accepts and says nothing; then one that talks nonsense."""
    one, two = pair
    stage.agent.accept()
    with echo_app(two.netns, PORT):
        assert ask(one.netns, two.netns.address, PORT, b"x") == b"x"
    peer = stage.agent._peer
    assert isinstance(peer, socket.socket)
    peer.send(b"\xff" * 100)
    assert b"not protobuf" in peer.recv(1024)
    stage.snapshot(one, two)
    stage.wait_ready()


def test_workloads_come_and_go_without_a_trace(stage: Stage, pair: Pair) -> None:
    """Descriptors of main and of every worker, and the fd store, are as before."""
    one, two = pair

    def open_fds() -> list[int]:
        assert stage.process is not None
        pids = [stage.process.pid, *stage.worker_pids()]
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids]

    def cycle() -> None:
        stage.forget(two)
        assert stage.agent.ask(two.announcement, two.netns.path) == ""

    with echo_app(two.netns, PORT):
        cycle()
        before = open_fds()
        for _ in range(20):
            cycle()
        wait_until(lambda: open_fds() == before, WAITS["service"], what=f"{before} again")
        assert ask(one.netns, two.netns.address, PORT, b"x") == b"x"
    wait_until(
        lambda: len(stage.systemd.stored) == stored(2), WAITS["service"], what="store as before"
    )
