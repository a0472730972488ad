"""``kill -9`` of a worker, then of main, on each node in turn, each under a load of its own."""

from __future__ import annotations

import time
from typing import Any

from tests.chaos.report import Report
from tests.lab.cast import APP_PORT, Cast
from tests.support.machines import Machine
from tests.support.mesh import ZTUNNEL, Mesh, Workload
from tests.support.mixed_load import SHORT_CLIENTS, TRANSFERS, MixedLoad, Outcome
from tests.support.waits import WAITS, wait_until

RECOVERY_BOUND_SECONDS = 1.0


def run(mesh: Mesh, cast: Cast, rounds: int, report: Report) -> None:
    """New connections wait and are served; only the dead worker's streams are lost."""
    for number in range(rounds):
        for victim in ("worker", "main"):
            node = (cast.client.node, cast.server.node)[number % 2]
            players = [cast.client, cast.peer] if node is cast.client.node else [cast.server]
            _round(mesh, cast, report, (number + 1, victim, node, players))


def main_pid(node: Machine) -> int:
    """Of the ztunnel."""
    return int(node.unit(ZTUNNEL, "MainPID")["MainPID"])


def workers(node: Machine) -> list[int]:
    """Of the main process, if one runs."""
    pid = main_pid(node)
    text = node.sh(f"cat /proc/{pid}/task/{pid}/children 2>/dev/null || true")
    return [int(word) for word in text.split()]


def streams_of(pid: int, players: list[Workload]) -> int:
    """Connections between applications and a worker."""
    ports = f"'( sport = :15001 or dport = :{APP_PORT} )'"
    commands = [
        f"nsenter --net=/run/netns/{player.netns_name} ss -Htnp state established {ports}"
        for player in players
    ]
    lines = players[0].node.sh("; ".join(commands)).splitlines()
    return sum(f"pid={pid}," in line for line in lines)


def _round(
    mesh: Mesh, cast: Cast, report: Report, plan: tuple[int, str, Machine, list[Workload]]
) -> None:
    number, victim, node, players = plan
    clients = [cast.client.netns, cast.peer.netns]
    with MixedLoad(clients, cast.server.address, APP_PORT) as load:
        found = workers(node)
        # the one with more connections: what it loses is the point
        pid = max(found, key=lambda pid: streams_of(pid, players))
        held = streams_of(pid, players) if victim == "worker" else 0
        pid = pid if victim == "worker" else main_pid(node)
        killed_at = time.monotonic()
        node.sh(f"kill -9 {pid}")
        wait_until(
            lambda: time.monotonic() > killed_at and load.served_after(killed_at + 0.05),
            WAITS["crash_restart"],
            what="served after the kill",
        )
        recovered = load.recovered_after(killed_at + 0.05) + 0.05
        wait_until(
            lambda: len(set(workers(node)) - {pid}) == len(found) and main_pid(node) != pid,
            WAITS["crash_restart"],
            what="everybody replaced",
        )
        mesh.wait_ready(node)
    _judge(report, load.outcome(), held, number=number, victim=victim, node=node, first=recovered)


def _judge(report: Report, outcome: Outcome, held: int, **about: Any) -> None:
    lost = len(outcome.failures) + outcome.transfers_lost + outcome.idle_lost
    victim = about["victim"]
    report.add(
        {
            "round": about["number"],
            "killed": victim,
            "node": about["node"].name,
            "streams held": held,
            "lost": lost,
            "refused": sum("Refused" in text for text in outcome.failures),
            "requests": outcome.requests,
            "failed": len(outcome.failures),
            "transfers cut": outcome.transfers_lost,
            "idle lost": outcome.idle_lost,
            "first served after s": about["first"],
            "longest request s": outcome.longest_request_seconds,
        }
    )
    # what every client was about to begin comes on top of what was counted
    allowed = held + SHORT_CLIENTS + TRANSFERS if victim == "worker" else 0
    report.expect(lost <= allowed, f"only the {held} streams of the dead worker: {lost} lost")
    refused = any("Refused" in text for text in outcome.failures)
    report.expect(not refused, "no connection is refused")
    slowest = outcome.longest_request_seconds
    report.expect(slowest < RECOVERY_BOUND_SECONDS, f"served again within 1 s: {slowest:.2f} s")
