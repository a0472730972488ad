"""What workers get to see of the mesh's state: messages built from it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from metalmesh.model.compat import NOTHING, Deviation
from metalmesh.model.workload import TunnelProtocol
from metalmesh.policy.l4 import applicable
from metalmesh.policy.network_policy import network_policy_to_dict
from metalmesh.ztunnel import messages

if TYPE_CHECKING:
    from metalmesh.model.network_policy import CompiledNetworkPolicy, PolicyRule
    from metalmesh.model.workload import Workload
    from metalmesh.policy.trust_domains import TrustDomains
    from metalmesh.routing.route import Hop, Route
    from metalmesh.routing.state import MeshState
    from metalmesh.zds.messages import AddWorkload


def labels_of(workload: Workload) -> messages.Labels:
    """Labels for log lines and metrics, named by ``messages.LABEL_KEYS``."""
    meshed = workload.protocol is TunnelProtocol.HBONE
    return {
        "name": workload.name,
        "workload": workload.workload_name,
        "namespace": workload.namespace,
        "principal": str(workload.identity) if meshed else "",
        "app": workload.canonical_name,
        "version": workload.canonical_revision,
        "canonical_service": workload.canonical_name,
        "canonical_revision": workload.canonical_revision,
        "cluster": workload.cluster_id,
        "region": workload.locality.region,
        "zone": workload.locality.zone,
        "node": workload.node,
    }


def find_local(state: MeshState, local: AddWorkload) -> Workload | None:
    """The workload that the node agent asked us to serve, as the control plane knows it.

    Names and service account must agree: the control plane is the authority for identity.
    """
    workload = state.workloads.get(local.uid)
    names = (local.namespace, local.name, local.service_account)
    if workload is not None and names == (
        workload.namespace,
        workload.name,
        workload.service_account,
    ):
        return workload
    return state.workload_named(*names)


@dataclass(frozen=True, slots=True)
class LocalView:
    """A local workload as far as the control plane has described it."""

    identity: str = ""
    addresses: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def added(self, local: AddWorkload) -> messages.AddWorkload:
        """The message that starts serving it."""
        return messages.AddWorkload(
            uid=local.uid,
            name=local.name,
            namespace=local.namespace,
            service_account=local.service_account,
            identity=self.identity,
            addresses=self.addresses,
            labels=dict(self.labels),
        )

    def updated(self, local: AddWorkload) -> messages.UpdateWorkload:
        """The message that brings it up to date."""
        return messages.UpdateWorkload(
            uid=local.uid,
            name=local.name,
            namespace=local.namespace,
            service_account=local.service_account,
            identity=self.identity,
            addresses=self.addresses,
            labels=dict(self.labels),
        )


def view_local(workload: Workload | None) -> LocalView:
    """The view of a local workload; empty while the control plane does not know it."""
    if workload is None:
        return LocalView()
    return LocalView(
        str(workload.identity),
        tuple(map(str, workload.addresses)),
        tuple(labels_of(workload).items()),
    )


def policies_for(
    state: MeshState,
    uid: str,
    workload: Workload,
    *,
    inner_enforcement: bool,
    compat: frozenset[Deviation] = NOTHING,
) -> messages.Policies:
    """Everything that decides inbound connections of the local workload ``uid``."""
    authorizations, missing = applicable(state.policies.values(), workload)
    selecting = [
        _localized(policy, workload.uid, uid)
        for _, policy in sorted(state.network_policies.items())
        if any(item.uid == workload.uid for item in policy.selected)
    ]
    return messages.Policies(
        uid=uid,
        authorizations=tuple(policy.to_dict() for policy in authorizations),
        network_policies=tuple(map(network_policy_to_dict, selecting)),
        inner_enforcement=inner_enforcement and Deviation.NETWORK_POLICY_PORTS not in compat,
        missing=() if Deviation.MISSING_POLICY in compat else missing,
    )


def _localized(policy: CompiledNetworkPolicy, uid: str, local_uid: str) -> CompiledNetworkPolicy:
    """The part of a policy that concerns one workload, under the name the node agent gave it."""

    def rules(all_rules: tuple[PolicyRule, ...]) -> tuple[PolicyRule, ...]:
        mine = (rule for rule in all_rules if not rule.only_uids or uid in rule.only_uids)
        return tuple(replace(rule, only_uids=frozenset()) for rule in mine)

    return replace(
        policy,
        selected=tuple(replace(item, uid=local_uid) for item in policy.selected if item.uid == uid),
        ingress_rules=rules(policy.ingress_rules),
        egress_rules=rules(policy.egress_rules),
    )


def route_message(route: Route, domains: TrustDomains, *, cacheable: bool) -> messages.Route:
    """A decision in the workers' terms."""
    reference = None
    if route.service is not None:
        reference = messages.ServiceRef(
            hostname=route.service.hostname,
            name=route.service.name,
            namespace=route.service.namespace,
        )
    return messages.Route(
        kind=route.kind.value,
        error=route.error,
        service=reference,
        endpoints=tuple(_endpoint(hop, domains) for hop in route.hops),
        cacheable=cacheable,
    )


def _endpoint(hop: Hop, domains: TrustDomains) -> messages.Endpoint:
    return messages.Endpoint(
        address=hop.address,
        authority=hop.authority,
        identities=domains.expand_identities(hop.identities),
        weight=hop.weight,
        workload=labels_of(hop.workload),
    )
