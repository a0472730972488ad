"""What dies, and what does not notice."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import time

import pytest

from metalmesh.constants import TYPE_ADDRESS
from metalmesh.model.authorization import Action, Authorization, PolicyScope
from tests.support.apps import ask, echo_app
from tests.support.mixed_load import MixedLoad
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage, stored

pytestmark = pytest.mark.root
LISTENERS = ("listener-15001", "listener-15006", "listener-15008")
PORT = 8080
Pair = tuple[Guest, Guest]
CLOSED = Authorization(
    name="closed",
    namespace="shop",
    scope=PolicyScope.NAMESPACE,
    action=Action.DENY,
    rules=((),),
)


def reachable(one: Guest, two: Guest) -> bool:
    """Whether an exchange works."""
    try:
        return ask(one.netns, two.netns.address, PORT, b"x") == b"x"
    except OSError:
        return False


def test_killed_main_is_back_within_two_seconds_and_refuses_nobody(
    stage: Stage, pair: Pair
) -> None:
    """All its processes die at once; connections made meanwhile queue in the stored listeners."""
    one, two = pair
    assert sorted(name.rpartition("-")[0] for name, _ in stage.systemd.stored) == sorted(
        [*LISTENERS, "dns-tcp4", "dns-tcp6", "dns-udp4", "dns-udp6", "netns", "worker"] * 2
    )
    with echo_app(two.netns, PORT):
        workers = stage.worker_pids()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        stage.stop(signal.SIGKILL)
        connection = one.netns.connect(two.netns.address, PORT)
        connection.sendall(b"x")
        started_at = time.monotonic()
        stage.start()
        stage.snapshot(one, two)
        connection.settimeout(10)
        assert connection.recv(1) == b"x"
        seconds = time.monotonic() - started_at
        connection.close()
    assert seconds < 2.0, f"{seconds:.2f} s"
    wait_until(
        lambda: len(stage.systemd.stored) == stored(2), WAITS["service"], what="not stored twice"
    )


def test_restart_without_node_agent_serves_what_was_served(stage: Stage, pair: Pair) -> None:
    """Namespaces come back from the fd store; the agent's snapshot then has the last word."""
    one, two = pair
    inode = one.netns.path.stat().st_ino
    stage.agent.drop()
    stage.stop(signal.SIGKILL)
    stage.start()
    with echo_app(two.netns, PORT):
        wait_until(lambda: reachable(one, two), WAITS["crash_restart"], what="served again")
        stage.snapshot(two, keep=(one,))
        assert reachable(one, two)
        stage.agent.drop()
        stage.snapshot(two)
        assert not reachable(one, two)
    wait_until(
        lambda: not any(str(inode) in name for name, _ in stage.systemd.stored),
        WAITS["service"],
        what="store emptied",
    )
    assert list(stage.dump()["workloadState"]) == [two.workload.uid]


def test_death_of_main_is_not_noticed(stage: Stage, pair: Pair) -> None:
    """Workers go on accepting; the next main adopts them, and they obey its policies."""
    one, two = pair
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        workers = stage.worker_pids()
        stage.stop(signal.SIGKILL)
        assert reachable(one, two), "nobody is main, and the way is known"
        stage.start()
        stage.snapshot(one, two)
        stage.wait_ready()
        assert not set(workers) & set(stage.worker_pids())
        connection.sendall(b"b")
        assert connection.recv(1) == b"b"
        stage.plane.set(CLOSED)
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b"", "the old worker heard of the policy"
    wait_until(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers),  # noqa: PTH110
        WAITS["service"],
        what="old workers gone",
    )


def test_handover_ends_no_connection_and_loses_no_control(stage: Stage, pair: Pair) -> None:
    """``systemctl reload``: a new main, new workers; the old ones finish and still obey policies.

    The agent says nothing meanwhile: everything comes from the fd store and the state directory.
    """
    one, two = pair
    stage.settings["workers"] = 3
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        old = stage.worker_pids()
        stage.agent.drop()
        assert stage.stop(signal.SIGHUP) == 0
        # at least the one with the connection; the others had nothing to finish
        assert {name for name, _ in stage.systemd.stored} & {f"worker-{pid}" for pid in old}
        stage.start()
        wait_until(lambda: reachable(one, two), WAITS["crash_restart"], what="new connections")
        connection.sendall(b"b")
        assert connection.recv(1) == b"b"
        assert len(stage.worker_pids()) == 3
        # the one with the connection; the other had nothing to finish and may be gone already
        assert "worker adopted" in stage.log()
        stage.snapshot(one, two)
        (inbound,) = stage.dump()["workloadState"][two.workload.uid]["connections"]["inbound"]
        assert inbound["protocol"] == "HBONE"
        stage.plane.set(CLOSED)
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b"", "the old worker heard of the policy"
    wait_until(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in old),  # noqa: PTH110
        WAITS["service"],
        what="old workers gone",
    )
    wait_until(
        lambda: not {f"worker-{pid}" for pid in old} & {name for name, _ in stage.systemd.stored},
        WAITS["service"],
        what="their pipes closed",
    )


def test_dead_worker_is_replaced_and_its_counters_stay(stage: Stage, pair: Pair) -> None:
    one, two = pair

    def opened() -> float:
        return sum(
            float(line.rpartition(" ")[2])
            for line in stage.metrics().splitlines()
            if line.startswith("istio_tcp_connections_opened_total{")
        )

    with echo_app(two.netns, PORT):
        assert reachable(one, two)
        before = wait_until(opened, WAITS["metric"], what="counted")
        victim, witness = stage.worker_pids()
        os.kill(victim, signal.SIGKILL)
        # one tunnel may have ended in the victim; the first connection over it finds that out
        wait_until(lambda: reachable(one, two), WAITS["traffic"], what="the other worker")
        assert all(reachable(one, two) for _ in range(5)), "the other worker goes on"
        wait_until(
            lambda: len(stage.worker_pids()) == 2 and victim not in stage.worker_pids(),
            WAITS["crash_restart"],
            what="replacement",
        )
        assert witness in stage.worker_pids()
        wait_until(lambda: stage.readiness()[0] == 200, WAITS["service"], what="ready again")
        os.kill(witness, signal.SIGKILL)
        wait_until(
            lambda: reachable(one, two), WAITS["crash_restart"], what="served by the new one"
        )
        assert opened() > before
    assert "metalmesh_ztunnel_worker_restarts_total 2" in stage.metrics()


def test_control_plane_outage_is_not_noticed(stage: Stage, pair: Pair) -> None:
    """Neither by open connections nor by new ones; afterwards only the difference is sent."""
    one, two = pair
    with echo_app(two.netns, PORT):
        assert reachable(one, two)
        stage.plane.stop()
        assert reachable(one, two)
        before = len(stage.plane.requests)
        stage.plane.start()
        wait_until(lambda: len(stage.plane.requests) > before, WAITS["service"], what="reconnected")
        again = stage.plane.requests[before]
        assert again.type_url == TYPE_ADDRESS
        assert set(again.initial_resource_versions) == {one.workload.uid, two.workload.uid}
        assert reachable(one, two)
    assert stage.readiness() == (200, "ready")


def test_restart_without_control_plane_resumes_from_saved_state(stage: Stage, pair: Pair) -> None:
    one, two = pair
    wait_until(lambda: (stage.directory / "xds.pb").exists(), WAITS["service"], what="state saved")
    stage.stop()
    stage.plane.stop()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    assert [w["name"] for w in stage.dump()["workloads"]] == ["w1", "w2"]
    assert (stage.directory / "xds.pb").stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" not in (stage.directory / "xds.pb").read_bytes()


def test_damaged_saved_state_is_only_a_warning(stage: Stage) -> None:
    (stage.directory / "xds.pb").write_bytes(b"\xff\xff\xff")
    guest = stage.add_guest()
    stage.plane.set(guest.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(guest)
    stage.wait_ready()
    assert "saved xDS state is not readable" in stage.log()


def test_certificates_are_renewed_under_way(stage: Stage) -> None:
    """Half of four seconds; connections never notice, the log says nothing."""
    stage.plane.ttl = datetime.timedelta(seconds=4)
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    wait_until(lambda: len(_serials(stage)) == 2, WAITS["workload"], what="first certificates")
    before = _serials(stage)
    second = "spiffe://cluster.local/ns/shop/sa/sa2"
    with (
        echo_app(two.netns, PORT),
        MixedLoad([one.netns], two.netns.address, PORT, idle=2) as load,
    ):
        wait_until(
            lambda: stage.plane.signed.count(second) >= 4, WAITS["workload"], what="renewals"
        )
    outcome = load.outcome()
    assert (outcome.failures, outcome.transfers_lost, outcome.idle_lost) == ((), 0, 0)
    assert not before & _serials(stage)
    assert "certificate refused" not in stage.log()


def _serials(stage: Stage) -> set[str]:
    """Serial numbers of the certificates in use."""
    held = stage.dump()["certificates"]
    return {leaf["serialNumber"] for item in held for leaf in item["certChain"][:1]}


def test_refusing_ca_fails_connections_with_its_reason(stage: Stage) -> None:
    stage.plane.ca_refusal = "request impersonation authentication failure"
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    assert not reachable(one, two)
    stage.wait_log("connection", "request impersonation authentication failure")
    stage.plane.ca_refusal = ""
    with echo_app(two.netns, PORT):
        wait_until(lambda: reachable(one, two), WAITS["workload"], what="CA signs again")


def test_sigterm_lets_connections_finish(stage: Stage, pair: Pair) -> None:
    one, two = pair
    stage.settings["stop_deadline_seconds"] = 10
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as connection:
        connection.sendall(b"a")
        assert connection.recv(1) == b"a"
        assert stage.process is not None
        stage.process.send_signal(signal.SIGTERM)
        stage.wait_log("draining")
        connection.sendall(b"b")
        assert connection.recv(1) == b"b"
        connection.shutdown(1)
        assert connection.recv(1) == b""
    assert stage.process.wait(10) == 0
    stage.process = None
    assert any("STOPPING=1" in text for text in stage.systemd.heard)


def test_sigterm_ends_connections_at_the_deadline(stage: Stage, pair: Pair) -> None:
    one, two = pair
    stage.settings["stop_deadline_seconds"] = 0
    with echo_app(two.netns, PORT):
        assert stage.reload() == 0
        stage.snapshot(one, two)
        with one.netns.connect(two.netns.address, PORT) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            stage.stop()
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
    stage.wait_log("error", "connection closed due to connection drain")


def test_systemd_is_told_of_readiness_and_fed(stage: Stage, pair: Pair) -> None:
    del pair
    assert stage.systemd.heard[0].startswith("READY=1")
    wait_until(
        lambda: stage.systemd.heard.count("WATCHDOG=1") >= 2, WAITS["service"], what="watchdog"
    )
