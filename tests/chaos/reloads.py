"""``systemctl reload`` of both ztunnels, again and again, under one mixed load."""

from __future__ import annotations

import time

from tests.chaos.report import Report
from tests.lab.cast import APP_PORT, Cast
from tests.support.mesh import ZTUNNEL, Mesh
from tests.support.mixed_load import MixedLoad
from tests.support.waits import WAITS, wait_until


def run(mesh: Mesh, cast: Cast, rounds: int, report: Report) -> None:
    """Nothing fails, nothing is reset, nothing has to wait."""
    clients = [cast.client.netns, cast.peer.netns]
    with MixedLoad(clients, cast.server.address, APP_PORT) as load:
        for number in range(rounds):
            node = (cast.client.node, cast.server.node)[number % 2]
            began_at = time.monotonic()
            node.sh(f"systemctl reload {ZTUNNEL}")
            done_at = time.monotonic()
            mesh.wait_ready(node)
            ready_at = time.monotonic()
            wait_until(lambda at=ready_at: load.served_after(at), WAITS["traffic"], what="traffic")
            report.add(
                {
                    "reload": number + 1,
                    "node": node.name,
                    "seconds": done_at - began_at,
                    "ready after": ready_at - done_at,
                }
            )
    outcome = load.outcome()
    report.add(
        {
            "reload": f"all {rounds}",
            "node": "both",
            "requests": outcome.requests,
            "failed": len(outcome.failures),
            "resets": outcome.resets,
            "transfers cut": f"{outcome.transfers_lost} of {outcome.transfers}",
            "MB echoed": outcome.megabytes,
            "idle lost": f"{outcome.idle_lost} of {outcome.idle}",
            "longest request s": outcome.longest_request_seconds,
            "longest gap s": outcome.longest_gap_seconds,
        }
    )
    report.expect(not outcome.failures, f"no request fails: {outcome.failures[:3]}")
    lost = (outcome.resets, outcome.transfers_lost, outcome.idle_lost)
    report.expect(lost == (0, 0, 0), f"no resets, cut transfers, lost connections: {lost}")
