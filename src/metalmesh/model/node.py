"""Machines of the mesh (metalmesh.node.v1.Node)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.workload import IPAddress


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One machine: its underlay addresses and the workload ranges routed to it."""

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
