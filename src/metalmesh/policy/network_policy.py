"""Evaluate compiled NetworkPolicies, and carry them as JSON to the data workers.

Kubernetes' rule: a workload that no policy of a direction selects is open in that direction;
otherwise at least one rule of one of those policies must admit the traffic. Pure, and light to
import: the data workers use it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metalmesh.model.workload import IPAddress


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One side of a connection; ``uid`` is empty for an address outside the mesh."""

    address: IPAddress
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, and by what.

    ``policy`` is the admitting policy, or every isolating policy (comma-separated) of a refusal;
    empty when no policy selects the workload. ``rule`` is the admitting rule's index, else -1.
    """

    allowed: bool
    direction: str = ""
    policy: str = ""
    rule: int = -1
    message: str = "no NetworkPolicy selects the workload"


_OPEN = Verdict(allowed=True)


def evaluate(
    policies: Iterable[CompiledNetworkPolicy],
    source: Endpoint,
    destination: Endpoint,
    protocol: Protocol,
    port: int,
) -> Verdict:
    """Decide a connection end to end: the source's egress first, the destination's ingress then."""
    compiled = tuple(policies)
    verdict = evaluate_egress(compiled, source.uid, destination.address, protocol, port)
    if not verdict.allowed:
        return verdict
    return evaluate_ingress(compiled, destination.uid, source.address, protocol, port)


def evaluate_ingress(
    policies: Iterable[CompiledNetworkPolicy],
    uid: str,
    source: IPAddress,
    protocol: Protocol,
    port: int,
) -> Verdict:
    """Decide a connection from ``source`` to ``port`` of the workload ``uid``."""
    selecting = [policy for policy in policies if policy.ingress and _selects(policy, uid)]
    isolating = [(policy.key, policy.ingress_rules) for policy in selecting]
    if _is_itself(selecting, uid, source):
        return _OPEN
    return _decide("ingress", isolating, uid, source, protocol, port)


def evaluate_egress(
    policies: Iterable[CompiledNetworkPolicy],
    uid: str,
    destination: IPAddress,
    protocol: Protocol,
    port: int,
) -> Verdict:
    """Decide a connection of the workload ``uid`` to ``port`` of ``destination``."""
    selecting = [policy for policy in policies if policy.egress and _selects(policy, uid)]
    isolating = [(policy.key, policy.egress_rules) for policy in selecting]
    if _is_itself(selecting, uid, destination):
        return _OPEN
    return _decide("egress", isolating, uid, destination, protocol, port)


def _selects(policy: CompiledNetworkPolicy, uid: str) -> bool:
    return any(item.uid == uid for item in policy.selected)


def _is_itself(selecting: Iterable[CompiledNetworkPolicy], uid: str, peer: IPAddress) -> bool:
    """Kubernetes keeps nobody from himself; through a service's address he meets his own policy."""
    own = _canonical(peer)
    return any(
        own in item.addresses for policy in selecting for item in policy.selected if item.uid == uid
    )


def _decide(
    direction: str,
    isolating: list[tuple[str, tuple[PolicyRule, ...]]],
    uid: str,
    peer: IPAddress,
    protocol: Protocol,
    port: int,
) -> Verdict:
    if not isolating:
        return _OPEN
    peer = _canonical(peer)
    for key, rules in isolating:
        for index, rule in enumerate(rules):
            if rule_admits(rule, uid, peer, protocol, port):
                return Verdict(
                    allowed=True,
                    direction=direction,
                    policy=key,
                    rule=index,
                    message=f"admitted by {direction} rule {index} of NetworkPolicy {key}",
                )
    keys = ", ".join(key for key, _ in isolating)
    where = "from" if direction == "ingress" else "to"
    return Verdict(
        allowed=False,
        direction=direction,
        policy=keys,
        message=(
            f"no {direction} rule of NetworkPolicy {keys} admits {protocol.value.lower()}/{port} "
            f"{where} {peer}"
        ),
    )


def rule_admits(rule: PolicyRule, uid: str, peer: IPAddress, protocol: Protocol, port: int) -> bool:
    """Whether one rule admits the traffic: workload AND (ANY port) AND (ANY peer)."""
    if rule.only_uids and uid not in rule.only_uids:
        return False
    if rule.ports is not None and not any(item.admits(protocol, port) for item in rule.ports):
        return False
    return rule.peers is None or any(item.admits(peer) for item in rule.peers)


def _canonical(address: IPAddress) -> IPAddress:
    """An IPv4 peer of a dual-stack socket shows as ``::ffff:a.b.c.d``."""
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


# --- JSON ------------------------------------------------------------------------------------


def network_policy_to_dict(policy: CompiledNetworkPolicy) -> dict[str, Any]:
    """A JSON-able form; ``None`` (any) stays apart from an empty list (none)."""
    return {
        "namespace": policy.namespace,
        "name": policy.name,
        "selected": [
            {"uid": item.uid, "addresses": [str(address) for address in item.addresses]}
            for item in policy.selected
        ],
        "ingress": policy.ingress,
        "egress": policy.egress,
        "ingressRules": [_rule_to_dict(rule) for rule in policy.ingress_rules],
        "egressRules": [_rule_to_dict(rule) for rule in policy.egress_rules],
    }


def network_policy_from_dict(data: Mapping[str, Any]) -> CompiledNetworkPolicy:
    """The reverse of :func:`network_policy_to_dict`; trusts its input, our own process."""
    return CompiledNetworkPolicy(
        namespace=data["namespace"],
        name=data["name"],
        selected=tuple(
            SelectedWorkload(item["uid"], tuple(map(ipaddress.ip_address, item["addresses"])))
            for item in data["selected"]
        ),
        ingress=data["ingress"],
        egress=data["egress"],
        ingress_rules=tuple(map(_rule_from_dict, data["ingressRules"])),
        egress_rules=tuple(map(_rule_from_dict, data["egressRules"])),
    )


def _rule_to_dict(rule: PolicyRule) -> dict[str, Any]:
    peers = rule.peers
    ports = rule.ports
    return {
        "peers": peers
        if peers is None
        else [
            {"cidr": str(peer.cidr), "except": [str(item) for item in peer.excepted]}
            for peer in peers
        ],
        "ports": ports
        if ports is None
        else [
            {"protocol": port.protocol.value, "port": port.port, "endPort": port.end_port}
            for port in ports
        ],
        "onlyUids": sorted(rule.only_uids),
    }


def _rule_from_dict(data: Mapping[str, Any]) -> PolicyRule:
    peers, ports = data["peers"], data["ports"]
    return PolicyRule(
        peers=None
        if peers is None
        else tuple(
            Peer(
                ipaddress.ip_network(item["cidr"]),
                tuple(map(ipaddress.ip_network, item["except"])),
            )
            for item in peers
        ),
        ports=None
        if ports is None
        else tuple(
            PolicyPort(Protocol(item["protocol"]), item["port"], item["endPort"]) for item in ports
        ),
        only_uids=frozenset(data["onlyUids"]),
    )
