"""The smallest change of NetworkPolicies that would admit what they refuse; pure.

Where a rule admits the peer already, one more port in it; else a rule of its own for this peer and
these ports. Nothing else becomes reachable by a new rule, and no policy by a changed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from metalmesh.model.resources.meta import NAME_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metalmesh.model.network_policy import CompiledNetworkPolicy, PolicyRule
    from metalmesh.policy.judge import Refusal
    from metalmesh.policy.world import World

#: labels that name an application, the first that a workload has is enough to select it
_NAMES: Final = ("app.kubernetes.io/name", "app", "k8s-app")
_PEERS: Final = {"ingress": "from", "egress": "to"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What to add to one policy."""

    #: ``namespace/name``
    policy: str
    #: ``ingress`` or ``egress``
    direction: str
    #: index of the rule whose ports grow; -1: a new rule
    rule: int
    #: entries to append to the rule's ``ports``, or to the direction's rules
    entries: tuple[Mapping[str, Any], ...]

    @property
    def field(self) -> str:
        """Where the entries go."""
        return f"spec.{self.direction}" + (f"[{self.rule}].ports" if self.rule >= 0 else "")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {"policy": self.policy, "field": self.field, "append": list(self.entries)}


def suggest_changes(
    refusals: Iterable[Refusal], world: World, labels: Mapping[str, Mapping[str, str]]
) -> list[Change]:
    """What would admit every refused connection; ``labels`` are the workloads' by uid."""
    ports: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    rules: dict[tuple[str, str, str], tuple[dict[str, Any], list[Mapping[str, Any]]]] = {}
    for refusal in refusals:
        entry = {"protocol": refusal.protocol.value, "port": refusal.port}
        found = _rule_for_peer(refusal, world)
        if found is not None:
            entries = ports.setdefault((found[0], refusal.direction, found[1]), [])
        else:
            key = refusal.policies[0]
            peer = _peer(refusal, key.partition("/")[0], labels)
            _, entries = rules.setdefault((key, refusal.direction, repr(peer)), (peer, []))
        if entry not in entries:
            entries.append(entry)
    changes = [
        Change(policy=key, direction=direction, rule=rule, entries=tuple(entries))
        for (key, direction, rule), entries in ports.items()
    ]
    return changes + [
        Change(
            policy=key,
            direction=direction,
            rule=-1,
            entries=({_PEERS[direction]: [peer], "ports": list(entries)},),
        )
        for (key, direction, _), (peer, entries) in rules.items()
    ]


def _rule_for_peer(refusal: Refusal, world: World) -> tuple[str, int] | None:
    """Policy and index of a rule that admits the peer, but not the port."""
    for key in refusal.policies:
        for index, rule in enumerate(_rules(world.state.network_policies[key], refusal.direction)):
            if rule.only_uids and refusal.workload.uid not in rule.only_uids:
                continue
            if rule.peers is None or any(peer.admits(refusal.address) for peer in rule.peers):
                return key, world.origin(f"NetworkPolicy {key} {refusal.direction}", index)
    return None


def _rules(policy: CompiledNetworkPolicy, direction: str) -> tuple[PolicyRule, ...]:
    return policy.ingress_rules if direction == "ingress" else policy.egress_rules


def _peer(
    refusal: Refusal, namespace: str, labels: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Who is to be admitted, as a peer of a policy of ``namespace``."""
    peer = refusal.peer
    known = labels.get(peer.uid, {}) if peer is not None else {}
    if peer is None or not known:
        return {"ipBlock": {"cidr": f"{refusal.address}/{refusal.address.max_prefixlen}"}}
    name = next((key for key in _NAMES if key in known), None)
    wanted = {name: known[name]} if name else dict(known)
    selector: dict[str, Any] = {"podSelector": {"matchLabels": wanted}}
    if peer.namespace != namespace:
        selector["namespaceSelector"] = {"matchLabels": {NAME_LABEL: peer.namespace}}
    return selector
