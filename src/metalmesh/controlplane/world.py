"""The mesh that the resources in force make, for :mod:`metalmesh.policy.why`; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metalmesh.constants import (
    ANNOTATION_BYPASS_INBOUND,
    TYPE_ADDRESS,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
)
from metalmesh.model.compat import Deviation
from metalmesh.model.exclusions import NO_EXCLUSIONS
from metalmesh.model.resources import AuthorizationPolicy, PeerAuthentication, WorkloadEntry
from metalmesh.policy.peer_authentication import effective_policy
from metalmesh.policy.world import World
from metalmesh.render.wds import workload_uid
from metalmesh.routing.state import MeshState
from metalmesh.xds.authorization import decode_authorization
from metalmesh.xds.node import decode_network_policy
from metalmesh.xds.wds import decode_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.controlplane.compute import Computation, ComputeOptions
    from metalmesh.controlplane.snapshot import AcceptedObject, Condition, Snapshot


def mesh_state(snapshot: Snapshot) -> MeshState:
    """What a ztunnel that received everything would know."""
    state = MeshState()
    state.apply_addresses(
        {
            name: decode_address(item.data, name)
            for name, item in snapshot.of_type(TYPE_ADDRESS).items()
        }
    )
    state.apply_policies(
        {
            name: decode_authorization(item.data, name)
            for name, item in snapshot.of_type(TYPE_AUTHORIZATION).items()
        }
    )
    state.apply_network_policies(
        {
            name: decode_network_policy(item.data, name)
            for name, item in snapshot.of_type(TYPE_NETWORK_POLICY).items()
        }
    )
    return state


def make_world(
    objects: Mapping[str, AcceptedObject], computation: Computation, options: ComputeOptions
) -> World:
    """Everything an explanation needs."""
    in_order = [item.resource for item in sorted(objects.values(), key=lambda item: item.age)]
    peers = [item for item in in_order if isinstance(item, PeerAuthentication)]
    entries = [item for item in in_order if isinstance(item, WorkloadEntry)]
    root = options.mesh.root_namespace
    doubtful = {
        key: (item.resource, reasons)
        for key, item in objects.items()
        if isinstance(item.resource, AuthorizationPolicy)
        and (reasons := _reservations(computation.conditions.get(key, ())))
    }
    return World(
        state=mesh_state(computation.snapshot),
        inner_enforcement=Deviation.NETWORK_POLICY_PORTS not in options.compat,
        missing_skipped=Deviation.MISSING_POLICY in options.compat,
        origins=computation.origins,
        peer_authentications=_modes(peers, entries, options),
        reservations={
            workload_uid(entry, options.mesh): tuple(
                (key, reasons)
                for key, (policy, reasons) in doubtful.items()
                if _is_meant(policy, entry, root)
            )
            for entry in (entries if doubtful else ())
        },
        netns={workload_uid(entry, options.mesh): entry.netns for entry in entries},
        exclusions={
            workload_uid(entry, options.mesh): entry.exclusions
            for entry in entries
            if entry.exclusions != NO_EXCLUSIONS
        },
        bypassing=frozenset(
            workload_uid(entry, options.mesh)
            for entry in entries
            if entry.meta.annotations.get(ANNOTATION_BYPASS_INBOUND) == "true"
        ),
    )


def _modes(
    peers: list[PeerAuthentication], entries: list[WorkloadEntry], options: ComputeOptions
) -> dict[str, str]:
    """Which PeerAuthentication decides for a workload, by uid."""
    found = {}
    for entry in entries:
        policy = effective_policy(
            peers, options.mesh.root_namespace, entry.meta.namespace, entry.labels
        )
        if policy is not None:
            found[workload_uid(entry, options.mesh)] = f"PeerAuthentication {policy.meta.key}"
    return found


def _reservations(conditions: tuple[Condition, ...]) -> str:
    """Why a policy does not do what is written in it; "" when it does."""
    return "; ".join(
        item.message for item in conditions if not item.status or item.reason == "UnsupportedValue"
    )


def _is_meant(policy: AuthorizationPolicy, entry: WorkloadEntry, root: str) -> bool:
    """Whether a policy is for a workload, were it enforced."""
    if policy.meta.namespace not in (entry.meta.namespace, root):
        return False
    return policy.selector is None or policy.selector.matches(entry.labels)
