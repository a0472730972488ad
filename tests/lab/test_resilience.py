"""Crashes, restarts and outages: nobody notices, and never a byte in clear."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from metalmesh.constants import PORT_NODE_AGENT
from tests.lab.cast import APP_PORT, Cast
from tests.lab.policies import authorization, from_workload
from tests.support.apps import LongConnection, ask, new_marker
from tests.support.capture import Link, Recorder
from tests.support.mesh import CONTROL_PLANE, NODE_AGENT, ZTUNNEL, Mesh
from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until

CRASH_BOUND_SECONDS = 2.0
REPAIR_BOUND_SECONDS = 5.0
SLOW_SECONDS = 0.25
"""A connection takes a few milliseconds; one that took longer had to wait for a process."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One connection of the load; instants are monotonic seconds."""

    began_at: float
    ended_at: float
    error: str
    """Why it was not served; empty when it was."""


class Load:
    """New connections one after the other, each with a marker of its own."""

    def __init__(self, client: Netns, address: str) -> None:
        self._client, self._address = client, address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.markers: list[bytes] = []
        self.attempts: list[Attempt] = []

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
            began_at = time.monotonic()
            error = self._try(marker)
            self.attempts.append(Attempt(began_at, time.monotonic(), error))

    def _try(self, marker: bytes) -> str:
        try:
            with self._client.connect(self._address, APP_PORT) as connection:
                connection.sendall(marker)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(4096)
                return "" if answer == marker else f"answered {answer!r}"
        except OSError as error:
            return str(error)

    def served_after(self, moment: float) -> bool:
        """Whether an attempt that began after the moment was served."""
        return any(not attempt.error and attempt.began_at > moment for attempt in self.attempts)

    def failures(self, moment: float) -> list[str]:
        """What went wrong, with the seconds after the moment."""
        return [
            f"{attempt.began_at - moment:.2f} to {attempt.ended_at - moment:.2f} s: {attempt.error}"
            for attempt in self.attempts
            if attempt.error
        ]

    def outage_seconds(self, moment: float) -> float:
        """From the moment to the end of the last attempt that failed or had to wait."""
        return max(
            (
                attempt.ended_at - moment
                for attempt in self.attempts
                if attempt.error or attempt.ended_at - attempt.began_at > SLOW_SECONDS
            ),
            default=0.0,
        )

    def longest_seconds(self) -> float:
        """How long the slowest connection took."""
        return max(attempt.ended_at - attempt.began_at for attempt in self.attempts)


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
        node.sh(f"systemctl kill -s KILL {ZTUNNEL}")
        killed_at = time.monotonic()
        back = killed_at + CRASH_BOUND_SECONDS
        wait_until(
            lambda: time.monotonic() > back and load.served_after(back),
            WAITS["crash_restart"],
            what="service after the kill",
        )
    outage = load.outage_seconds(killed_at)
    print(
        f"ztunnel killed: back in service after {outage:.2f} s,"
        f" {len(load.failures(killed_at))} of {len(load.attempts)} connections failed"
    )
    assert 0 < outage < CRASH_BOUND_SECONDS
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
        assert not load.failures(restarted_at)
        assert long.echo(b"after") == b"after"
    for node in mesh.nodes:
        mesh.wait_ready(node)


@pytest.mark.parametrize("verb", ["restart", "reload"])
def test_new_ztunnel_ends_no_connection_and_refuses_none(mesh: Mesh, cast: Cast, verb: str) -> None:
    """Old workers finish their streams while new ones accept from the same sockets (DESIGN 3)."""
    node, address = cast.client.node, cast.server.address
    before = node.unit(ZTUNNEL, "MainPID")
    with (
        LongConnection(cast.client.netns, address, APP_PORT) as outbound,
        LongConnection(cast.other.netns, cast.client.address, APP_PORT) as inbound,
        Load(cast.peer.netns, address) as load,
    ):
        assert outbound.echo(b"before") == inbound.echo(b"before") == b"before"
        began_at = time.monotonic()
        node.sh(f"systemctl {verb} {ZTUNNEL}")
        done_at = time.monotonic()
        wait_until(
            lambda: node.unit(ZTUNNEL, "MainPID") != before and load.served_after(done_at),
            WAITS["service"],
            what="a new main process and traffic",
        )
        mesh.wait_ready(node)
        assert outbound.echo(b"after") == inbound.echo(b"after") == b"after"
    failures = load.failures(began_at)
    print(
        f"{verb}: {done_at - began_at:.2f} s, {len(failures)} of {len(load.attempts)} failed,"
        f" the slowest took {load.longest_seconds():.2f} s"
    )
    assert not failures


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


def test_nftables_service_takes_nothing_away_for_long(mesh: Mesh, cast: Cast) -> None:
    """Its configuration begins with `flush ruleset`, and so does its end."""
    node = cast.server.node
    tables = ("metalmesh-policy", "metalmesh-services", "istio-ambient-nat")
    repairs = "metalmesh_node_drift_repairs_total"
    with Load(cast.client.netns, cast.server.address) as load:
        wait_until(lambda: load.served_after(0.0), WAITS["traffic"], what="load before")
        for verb in ("restart", "reload", "stop"):
            before = mesh.metric(node, repairs, port=PORT_NODE_AGENT)
            log = node.journal(NODE_AGENT)
            flushed_at = time.monotonic()
            node.sh(f"systemctl {verb} nftables")

            def whole() -> bool:
                return all(name in node.sh("nft list tables") for name in tables)

            wait_until(whole, WAITS["drift"], what="the node's tables")
            seconds = time.monotonic() - flushed_at
            log.wait("somebody changed it, restored", "table metalmesh-policy")
            print(f"systemctl {verb} nftables: restored within {seconds:.2f} s")
            assert seconds < REPAIR_BOUND_SECONDS
            assert mesh.metric(node, repairs, port=PORT_NODE_AGENT) > before
    assert load.failures(0.0) == []
