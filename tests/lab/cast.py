"""The workloads the lab tests bring along, and where they play."""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress

from tests.support.capture import Link
from tests.support.mesh import Mesh, Workload

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


def veth_of(workload: Workload) -> Link:
    """The node's end of a workload's veth."""
    digest = hashlib.sha256(workload.netns_name.encode()).hexdigest()[:8]
    return Link(workload.node.netns.path, f"mmw{digest}")
