"""Crashes, restarts and outages: nobody notices, and never a byte in clear."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.lab.cast import APP_PORT, Cast
from tests.lab.policies import authorization, from_workload
from tests.support.apps import LongConnection, ask, new_marker
from tests.support.capture import Link, Recorder
from tests.support.mesh import CONTROL_PLANE, NODE_AGENT, ZTUNNEL, Mesh
from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until

CRASH_BOUND_SECONDS = 2.0
SHORT_SECONDS = 1.0


class Load:
    """New connections one after the other, each with its marker; when each one succeeded."""

    def __init__(self, client: Netns, address: str) -> None:
        self._client, self._address = client, address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.markers: list[bytes] = []
        #: (start, whether it was served) of every attempt, monotonic seconds.
        self.attempts: list[tuple[float, bool]] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            marker = new_marker()
            self.markers.append(marker)
            started_at = time.monotonic()
            served = self._try(marker)
            self.attempts.append((started_at, served))

    def _try(self, marker: bytes) -> bool:
        try:
            with self._client.connect(
                self._address, APP_PORT, timeout_seconds=SHORT_SECONDS
            ) as connection:
                connection.sendall(marker)
                connection.shutdown(socket.SHUT_WR)
                return connection.recv(4096) == marker
        except OSError:
            return False

    def served_after(self, moment: float) -> bool:
        """Whether an attempt that began after the moment succeeded."""
        return any(served and at > moment for at, served in self.attempts)

    def gap_seconds(self, moment: float) -> float:
        """From the moment to the start of the first lasting success after it."""
        failures = [at for at, served in self.attempts if at > moment and not served]
        last_failure = max(failures, default=moment)
        return next((at for at, ok in self.attempts if ok and at > last_failure), moment) - moment


def test_killed_ztunnel_is_back_in_two_seconds_and_never_in_clear(
    mesh: Mesh, cast: Cast, node_link: Link, record: Recorder
) -> None:
    """`systemctl kill -s KILL metalmesh-ztunnel` under load (issue: Acceptance 5)."""
    node = cast.client.node
    with (
        record(node_link, f"host {cast.server.address}") as recording,
        Load(cast.client.netns, cast.server.address) as load,
    ):
        wait_until(lambda: load.served_after(0.0), WAITS["traffic"], what="load before the kill")
        killed_at = time.monotonic()
        node.sh(f"systemctl kill -s KILL {ZTUNNEL}")
        back = killed_at + CRASH_BOUND_SECONDS
        wait_until(
            lambda: time.monotonic() > back and load.served_after(back),
            WAITS["crash_restart"],
            what="service after the kill",
        )
    gap = load.gap_seconds(killed_at)
    print(f"ztunnel killed: new connections served again after {gap:.2f} s")
    assert gap < CRASH_BOUND_SECONDS
    seen = recording.ports_between({cast.client.address}, {cast.server.address})
    assert seen == {"tcp/15008"}
    for marker in load.markers:
        assert not recording.plaintext_contains(marker)


def test_stopped_ztunnel_refuses_and_never_sends_in_clear(
    mesh: Mesh, cast: Cast, node_link: Link, record: Recorder
) -> None:
    """Fail closed: without a proxy there is no connection, not an unprotected one."""
    node = cast.client.node
    marker = new_marker()
    with record(node_link) as recording:
        node.sh(f"systemctl stop {ZTUNNEL}")
        try:
            assert ask(cast.client.netns, cast.server.address, APP_PORT, marker) == b""
        finally:
            node.sh(f"systemctl start {ZTUNNEL}")
        mesh.wait_ready(node)
        assert ask(cast.client.netns, cast.server.address, APP_PORT, b"again") == b"again"
    assert not recording.plaintext_contains(marker)


@contextlib.contextmanager
def stopped(mesh: Mesh, unit: str) -> Iterator[None]:
    """The unit is down during the block."""
    mesh.control_plane.sh(f"systemctl stop {unit}")
    try:
        yield
    finally:
        mesh.control_plane.sh(f"systemctl start {unit}")
        for node in mesh.nodes:
            mesh.wait_ready(node)


def test_outage_of_the_control_plane_is_not_noticed(mesh: Mesh, cast: Cast) -> None:
    """Neither by an open connection nor by new ones, nor by a ztunnel that restarts."""
    with LongConnection(cast.client.netns, cast.server.address, APP_PORT) as long:
        assert long.echo(b"before") == b"before"
        with stopped(mesh, CONTROL_PLANE):
            assert long.echo(b"during") == b"during"
            mesh.drop_tunnels(cast.peer)
            assert ask(cast.peer.netns, cast.server.address, APP_PORT, b"new") == b"new"
        assert long.echo(b"after") == b"after"


@pytest.mark.parametrize("unit", [NODE_AGENT, CONTROL_PLANE])
def test_restart_is_not_noticed(mesh: Mesh, cast: Cast, unit: str) -> None:
    """A restarted component finds its state again; connections, old and new, go on."""
    machine = mesh.control_plane if unit == CONTROL_PLANE else cast.client.node
    address = cast.server.address
    with LongConnection(cast.client.netns, address, APP_PORT) as long:
        assert long.echo(b"before") == b"before"
        with Load(cast.client.netns, address) as load:
            machine.restart(unit)
            restarted_at = time.monotonic()
            wait_until(lambda: load.served_after(restarted_at), WAITS["service"], what="traffic")
        assert all(served for _, served in load.attempts), "a connection failed meanwhile"
        assert long.echo(b"after") == b"after"
    for node in mesh.nodes:
        mesh.wait_ready(node)


def test_restart_of_the_ztunnel_resets_no_connection(mesh: Mesh, cast: Cast) -> None:
    """The old workers finish their streams while the new ones accept (DESIGN 3)."""
    node = cast.client.node
    with LongConnection(cast.client.netns, cast.server.address, APP_PORT) as long:
        assert long.echo(b"before") == b"before"
        node.restart(ZTUNNEL)
        mesh.wait_ready(node)
        assert long.echo(b"after") == b"after"


def test_restart_of_the_ztunnel_refuses_nobody(mesh: Mesh, cast: Cast) -> None:
    """New connections are accepted all the time: listening sockets outlive the process."""
    node = cast.client.node
    with Load(cast.client.netns, cast.server.address) as load:
        wait_until(lambda: load.served_after(0.0), WAITS["traffic"], what="load before")
        restarting_at = time.monotonic()
        node.restart(ZTUNNEL)
        restarted_at = time.monotonic()
        wait_until(lambda: load.served_after(restarted_at), WAITS["service"], what="load after")
    failed = [at - restarting_at for at, served in load.attempts if not served]
    print(
        f"ztunnel restarted in {restarted_at - restarting_at:.2f} s,"
        f" {len(failed)} of {len(load.attempts)} connections failed"
    )
    assert not failed


def test_policy_survives_restarts_of_everything(mesh: Mesh, cast: Cast) -> None:
    """After a crash of ztunnel and agent without a control plane a DENY still denies."""
    node = cast.server.node
    address = cast.server.address
    with mesh.applied(authorization("DENY", from_workload(cast.client))):
        wait_until(
            lambda: ask(cast.client.netns, address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="denied",
        )
        with stopped(mesh, CONTROL_PLANE):
            node.sh(f"systemctl kill -s KILL {ZTUNNEL} {NODE_AGENT}")
            deadline = time.monotonic() + CRASH_BOUND_SECONDS
            while time.monotonic() < deadline:
                assert ask(cast.client.netns, address, APP_PORT, b"x") == b""
    wait_until(
        lambda: ask(cast.client.netns, address, APP_PORT, b"x") == b"x",
        WAITS["service"],
        what="allowed again",
    )
