"""The workloads the lab tests bring along, and where they play."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import ipaddress
from collections.abc import Iterator

from tests.support.apps import ask, echo_app
from tests.support.capture import Link
from tests.support.mesh import Mesh, Workload
from tests.support.waits import WAITS, wait_until

NAMESPACE = "proof"
APP_PORT = 8080
OTHER_PORT = 9090


@dataclasses.dataclass(frozen=True)
class Cast:
    """Who plays in the tests. Every one of them runs an echo server on both ports."""

    client: Workload
    """In the mesh, on node1."""
    peer: Workload
    """In the mesh, on node1, with an identity of its own."""
    plain: Workload
    """On node1, but with dataplane mode ``none``."""
    server: Workload
    """In the mesh, on node2."""
    other: Workload
    """In the mesh, on node2."""
    callers: dict[str, list[str]]
    """Workload name -> source addresses its applications saw."""

    @property
    def all(self) -> tuple[Workload, ...]:
        """Everybody."""
        return (self.client, self.peer, self.plain, self.server, self.other)


def workload(mesh: Mesh, node: str, number: int, name: str, *, ambient: bool = True) -> Workload:
    """A workload of the tests on a node; the number picks its address."""
    machine = mesh.machines[node]
    (route, *_) = mesh.machines.lab.plan.node(node).routes
    return Workload(
        node=machine,
        namespace=NAMESPACE,
        name=name,
        account=name,
        address=str(ipaddress.ip_network(route)[200 + number]),
        trust_domain=mesh.settings["trust_domain"],
        address_v6=f"fd00:244:{node[-1]}::{200 + number}",
        ambient=ambient,
        labels={"tier": "back" if node == "node2" else "front"},
    )


@contextlib.contextmanager
def playing(mesh: Mesh) -> Iterator[Cast]:
    """The cast on the lab's nodes, enrolled and serving, during the block."""
    players = (
        workload(mesh, "node1", 1, "client"),
        workload(mesh, "node1", 2, "peer"),
        workload(mesh, "node1", 3, "plain", ambient=False),
        workload(mesh, "node2", 1, "server"),
        workload(mesh, "node2", 2, "other"),
    )
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mesh.applied(namespace))
        callers = {}
        for player in players:
            stack.callback(mesh.remove_workload, player)
            mesh.add_workload(player)
        for player in players:
            callers[player.name] = list[str]()
            for port in (APP_PORT, OTHER_PORT):
                app = stack.enter_context(echo_app(player.netns, port))
                app.callers = callers[player.name]
        found = Cast(*players, callers)
        _wait_enrolled(found)
        yield found


def _wait_enrolled(cast: Cast) -> None:
    """Wait until everybody in the mesh reaches the server with its identity."""
    for player in (cast.client, cast.peer, cast.other):
        target = cast.client if player is cast.other else cast.server
        wait_until(
            lambda player=player, target=target: ask(
                player.netns, target.address, APP_PORT, b"enrolled?"
            ),
            WAITS["workload"],
            what=f"{player.name} enrolled",
        )


def veth_of(workload: Workload) -> Link:
    """The node's end of a workload's veth."""
    digest = hashlib.sha256(workload.netns_name.encode()).hexdigest()[:8]
    return Link(workload.node.netns.path, f"mmw{digest}")
