"""Rules of NetworkPolicies that admit a port of the mesh, but not the port it comes through; pure.

Between captured workloads TCP travels inside HBONE, so packet rules see port 15008 only (Istio,
"Ambient and Kubernetes NetworkPolicy"). A rule is found when it admits some TCP port for a
captured pair to which no policy of that direction admits TCP 15008.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metalmesh.constants import PORT_HBONE
from metalmesh.model.network_policy import Protocol
from metalmesh.model.workload import TunnelProtocol
from metalmesh.policy import network_policy
from metalmesh.policy.netpol_change import Change
from metalmesh.policy.world import name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metalmesh.model.network_policy import CompiledNetworkPolicy, PolicyRule
    from metalmesh.model.workload import IPAddress, Workload
    from metalmesh.policy.world import World

_ENTRY: Final = {"protocol": Protocol.TCP.value, "port": PORT_HBONE}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One rule, the workloads it is meant for and cannot serve, and the remedy."""

    policy: str
    direction: str
    rule: int
    workloads: tuple[str, ...]

    @property
    def text(self) -> str:
        """For people."""
        towards = "through which the mesh reaches" if self.direction == "ingress" else (
            "through which the mesh lets out"
        )  # fmt: skip
        return (
            f"{self.direction} rule {self.rule} admits ports, but not TCP {PORT_HBONE}, {towards} "
            f"{', '.join(self.workloads)}; add it"
        )

    @property
    def change(self) -> Change:
        """What to add."""
        return Change(
            policy=self.policy, direction=self.direction, rule=self.rule, entries=(_ENTRY,)
        )


def lint_network_policies(world: World) -> list[Finding]:
    """Every such rule, by policy."""
    run = _Run(world)
    return [
        finding
        for _, policy in sorted(world.state.network_policies.items())
        for direction in ("ingress", "egress")
        for finding in run.policy(policy, direction)
    ]


class _Run:
    def __init__(self, world: World) -> None:
        self._world = world
        self._policies = tuple(world.state.network_policies.values())
        self._captured = [
            item
            for _, item in sorted(world.state.workloads.items())
            if item.protocol is TunnelProtocol.HBONE
        ]
        self._admitted: dict[tuple[str, str, IPAddress], bool] = {}

    def policy(self, policy: CompiledNetworkPolicy, direction: str) -> Iterator[Finding]:
        """The rules of one direction, as the user counts them."""
        rules = policy.ingress_rules if direction == "ingress" else policy.egress_rules
        selected = [item for item in self._captured if _selects(policy, item)]
        found: dict[int, set[str]] = {}
        for index, rule in enumerate(rules):
            names = {name_of(item) for item in selected if self._is_cut(rule, direction, item)}
            if names:
                origin = self._world.origin(f"NetworkPolicy {policy.key} {direction}", index)
                found.setdefault(origin, set()).update(names)
        for origin, names in sorted(found.items()):
            yield Finding(
                policy=policy.key, direction=direction, rule=origin, workloads=tuple(sorted(names))
            )

    def _is_cut(self, rule: PolicyRule, direction: str, workload: Workload) -> bool:
        """Whether the rule admits TCP of a captured peer whose tunnel nobody admits."""
        if rule.only_uids and workload.uid not in rule.only_uids:
            return False
        if rule.ports is None or not any(port.protocol is Protocol.TCP for port in rule.ports):
            return False
        return any(
            not self._tunnel_admitted(direction, workload.uid, address)
            for peer in self._captured
            if peer.uid != workload.uid
            for address in peer.addresses
            if rule.peers is None or any(item.admits(address) for item in rule.peers)
        )

    def _tunnel_admitted(self, direction: str, uid: str, peer: IPAddress) -> bool:
        key = (direction, uid, peer)
        known = self._admitted.get(key)
        if known is None:
            decide = (
                network_policy.evaluate_ingress
                if direction == "ingress"
                else network_policy.evaluate_egress
            )
            verdict = decide(self._policies, uid, peer, Protocol.TCP, PORT_HBONE)
            known = self._admitted[key] = verdict.allowed
        return known


def _selects(policy: CompiledNetworkPolicy, workload: Workload) -> bool:
    return any(item.uid == workload.uid for item in policy.selected)
