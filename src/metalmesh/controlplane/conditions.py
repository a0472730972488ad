"""Status conditions of policies, as Istio writes them where Istio has them; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metalmesh.controlplane.snapshot import Condition
from metalmesh.policy.peer_authentication import selects_workloads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metalmesh.model.network_policy import CompiledNetworkPolicy
    from metalmesh.model.resources import PeerAuthentication
    from metalmesh.policy.translate import Translation

_ZTUNNEL = "ZtunnelAccepted"


def of_translation(translation: Translation) -> Condition:
    """Of an AuthorizationPolicy (istio-facts 5.8)."""
    return Condition(
        type=translation.condition,
        status=translation.accepted,
        reason=translation.reason,
        message=translation.message,
    )


def of_peer_authentications(
    policies: Sequence[PeerAuthentication], root_namespace: str
) -> dict[str, tuple[Condition, ...]]:
    """Of every PeerAuthentication, by object id; given oldest first (istio-facts 5.7)."""
    found: dict[str, tuple[Condition, ...]] = {}
    first: dict[str, str] = {}
    for policy in policies:
        namespace = policy.meta.namespace
        if selects_workloads(policy):
            condition = _of_workload_policy(policy, root_namespace)
        elif namespace in first:
            condition = _refused(
                "Conflicted", f"{first[namespace]} is older and has the same scope; remove one"
            )
        else:
            first[namespace] = policy.meta.key
            condition = _of_modes(policy)
        found[f"PeerAuthentication {policy.meta.key}"] = (condition,)
    return found


def _of_workload_policy(policy: PeerAuthentication, root_namespace: str) -> Condition:
    if policy.meta.namespace == root_namespace:
        return _refused(
            "Invalid",
            "a selector selects workloads of its own namespace, and the root namespace has none; "
            "remove the selector or move the policy",
        )
    return _of_modes(policy)


def _of_modes(policy: PeerAuthentication) -> Condition:
    if "DISABLE" in (policy.mode, *policy.port_modes.values()):
        return Condition(
            type=_ZTUNNEL,
            status=True,
            reason="UnsupportedValue",
            message="ztunnel always accepts mutual TLS; DISABLE is enforced as PERMISSIVE",
        )
    return Condition(type=_ZTUNNEL, status=True, reason="Accepted", message="attached to ztunnel")


def _refused(reason: str, message: str) -> Condition:
    return Condition(type=_ZTUNNEL, status=False, reason=reason, message=message)


def of_network_policy(policy: CompiledNetworkPolicy, nodes: int) -> tuple[Condition, ...]:
    """Of a NetworkPolicy: what it is in force for."""
    count = len(policy.selected)
    message = f"selects {count} workload{'' if count == 1 else 's'} on {nodes} node"
    message += "" if nodes == 1 else "s"
    return (Condition(type="Accepted", status=True, reason="Accepted", message=message),)
