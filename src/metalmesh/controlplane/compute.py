"""Accepted objects to what is served; pure.

A previous result may be given: what a change does not touch is taken over from it, object by
object, so that one changed policy does not cost a rendering of ten thousand workloads. The result
is the same with and without it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from metalmesh.constants import (
    TYPE_ADDRESS,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
    TYPE_NODE,
)
from metalmesh.controlplane.conditions import (
    of_network_policy,
    of_peer_authentications,
    of_translation,
)
from metalmesh.controlplane.memory import Memo, Memory
from metalmesh.controlplane.namespace_view import NamespaceView
from metalmesh.controlplane.services import ServiceCatalog, ServiceObjects
from metalmesh.controlplane.snapshot import Condition, ServedResource, Snapshot, served_resource
from metalmesh.model.compat import NOTHING
from metalmesh.model.node import Node
from metalmesh.model.resources import (
    AuthorizationPolicy,
    Namespace,
    NetworkPolicyResource,
    NodeResource,
    PeerAuthentication,
    ServiceEntry,
    ServiceResource,
    WorkloadEntry,
)
from metalmesh.model.resources.meta import NAME_LABEL
from metalmesh.policy.network_policy_compile import (
    PolicyTarget,
    TargetIndex,
    compile_network_policy,
    port_protocol,
)
from metalmesh.policy.peer_authentication import (
    convert_peer_authentication,
    inherits_strict,
    selects_workloads,
    strict_authorization,
)
from metalmesh.policy.translate import translate_authorization
from metalmesh.policy.trust_domains import TrustDomains, expand_policy
from metalmesh.render.wds import NOWHERE, MeshOptions, workload_uid
from metalmesh.xds.authorization import encode_authorization
from metalmesh.xds.node import encode_network_policy, encode_node

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.controlplane.snapshot import AcceptedObject
    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.compat import Deviation
    from metalmesh.model.workload import IPAddress
    from metalmesh.policy.translate import Translation

    #: node to uid to why that workload is not well
    Health = Mapping[str, Mapping[str, str]]

_ALL_WELL: Final[Health] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeOptions:
    """What the result depends on besides the objects."""

    mesh: MeshOptions = field(default_factory=MeshOptions)
    #: ranges from which services without a clusterIP get their addresses
    service_cidrs: tuple[IPNetwork, ...] = ()
    #: ranges from which hosts of ServiceEntries without addresses get theirs
    service_entry_cidrs: tuple[IPNetwork, ...] = ()
    #: what is done as Istio does it (see metalmesh.policy.translate)
    compat: frozenset[Deviation] = NOTHING
    trust_domains: TrustDomains = field(default_factory=TrustDomains)


@dataclass(frozen=True, kw_only=True, slots=True)
class Computation:
    """What is served, and what it says about the objects."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    #: object id to its status conditions
    conditions: Mapping[str, tuple[Condition, ...]] = field(default_factory=dict)
    #: node name to the (namespace, service account) pairs that live there: what the CA signs for
    identities: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    #: allocated addresses of services, by ``namespace/name`` (of ServiceEntries with kind and host)
    vips: Mapping[str, tuple[IPAddress, ...]] = field(default_factory=dict)
    #: policy's object id to the indices of the rules from which those that are served were made
    #: (a NetworkPolicy's: with " ingress" and " egress" behind it)
    origins: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    memo: Mapping[tuple[str, str], Memo] = field(default_factory=dict)


def compute(
    objects: Mapping[str, AcceptedObject],
    options: ComputeOptions,
    previous: Computation | None = None,
    health: Health = _ALL_WELL,
) -> Computation:
    """Compute everything that is served from the accepted objects.

    ``health`` is what each node says of its own workloads that are not well.
    """
    return _Run(objects, options, previous or Computation(), health).result()


class _Run:
    """One computation: the objects by kind, oldest first, and the memory of the last run."""

    def __init__(
        self,
        objects: Mapping[str, AcceptedObject],
        options: ComputeOptions,
        previous: Computation,
        health: Health,
    ) -> None:
        self._options = options
        self._health = health
        self._mesh = options.mesh
        self._root = options.mesh.root_namespace
        self._previous = previous
        self._memory = memory = Memory(previous.memo)
        self._remember, self._shared = memory.remember, memory.shared
        by_kind: dict[type, list[Any]] = defaultdict(list)
        for item in sorted(objects.values(), key=lambda item: item.age):
            by_kind[type(item.resource)].append(item.resource)
        self._namespaces: dict[str, Namespace] = {n.meta.name: n for n in by_kind[Namespace]}
        self._nodes: list[NodeResource] = by_kind[NodeResource]
        self._entries: list[WorkloadEntry] = by_kind[WorkloadEntry]
        self._places = {node.meta.name: node.locality for node in self._nodes}
        self._catalog = ServiceCatalog(
            ServiceObjects(
                services=by_kind[ServiceResource],
                entries=by_kind[ServiceEntry],
                workloads=self._entries,
                namespaces=self._namespaces,
                places=self._places,
                healthy=lambda entry: not self._illness(entry),
            ),
            options.mesh,
            self._memory,
        )
        self._peers: list[PeerAuthentication] = by_kind[PeerAuthentication]
        self._policies: list[AuthorizationPolicy] = by_kind[AuthorizationPolicy]
        self._network_policies: list[NetworkPolicyResource] = by_kind[NetworkPolicyResource]
        # status of every NetworkPolicy
        self._selected: dict[str, tuple[Condition, ...]] = {}
        self._origins: dict[str, tuple[int, ...]] = {}
        self._ill: dict[str, tuple[Condition, ...]] = {}

    def result(self) -> Computation:
        translations = {
            policy.meta.key: self._remember(
                "AuthorizationPolicy",
                policy.meta.key,
                (policy, self._root),
                lambda policy=policy: self._translate(policy),
            )
            for policy in self._policies
        }
        vips = self._catalog.allocate(
            self._options.service_cidrs, self._options.service_entry_cidrs, self._previous.vips
        )
        types = {
            TYPE_AUTHORIZATION: self._authorizations(translations),
            TYPE_NODE: self._serve_nodes(),
            TYPE_NETWORK_POLICY: self._serve_network_policies(),
            TYPE_ADDRESS: self._addresses(translations, vips),
        }
        return Computation(
            snapshot=Snapshot(MappingProxyType(types)),
            conditions={
                **{
                    f"AuthorizationPolicy {key}": (of_translation(item),)
                    for key, item in translations.items()
                },
                **of_peer_authentications(self._peers, self._root),
                **self._selected,
                **self._ill,
                **dict(self._catalog.conditions()),
            },
            identities=self._identities(),
            vips=vips,
            origins={
                **{f"AuthorizationPolicy {key}": t.origins for key, t in translations.items()},
                **self._origins,
            },
            memo=self._memory.memo,
        )

    def _translate(self, policy: AuthorizationPolicy) -> Translation:
        expanded = expand_policy(policy, self._options.trust_domains)
        return translate_authorization(expanded, self._root, self._options.compat)

    # --- policies ----------------------------------------------------------------------------

    def _authorizations(self, translations: Mapping[str, Translation]) -> dict[str, ServedResource]:
        policies = [
            item.authorization for item in translations.values() if item.authorization is not None
        ]
        if self._peers:
            policies.append(strict_authorization(self._root))
        for peer in self._peers:
            if not selects_workloads(peer) or peer.meta.namespace == self._root:
                continue
            inherited = inherits_strict(self._peers, self._root, peer.meta.namespace)
            converted = convert_peer_authentication(peer, inherited=inherited)
            if converted is not None:
                policies.append(converted)
        return {
            policy.key: served_resource(policy.key, encode_authorization(policy))
            for policy in policies
        }

    def _serve_nodes(self) -> dict[str, ServedResource]:
        nodes = (
            Node(name=item.meta.name, addresses=item.internal_addresses, pod_cidrs=item.pod_cidrs)
            for item in self._nodes
        )
        return {node.name: served_resource(node.name, encode_node(node)) for node in nodes}

    def _serve_network_policies(self) -> dict[str, ServedResource]:
        """All anew when any policy, workload or namespace changed; else the last run's."""
        inputs = (
            self._shared("all", "network policies", self._network_policies),
            self._shared("all", "entries", self._entries),
            self._shared("all", "namespaces", list(self._namespaces.values())),
        )
        served: dict[str, ServedResource]
        served, self._selected, self._origins = self._remember(
            "all", "compiled", inputs, self._compile_network_policies
        )
        return served

    def _compile_network_policies(
        self,
    ) -> tuple[
        dict[str, ServedResource], dict[str, tuple[Condition, ...]], dict[str, tuple[int, ...]]
    ]:
        """What is served, the status of every policy, and the origins of its rules."""
        if not self._network_policies:
            return {}, {}, {}
        index = TargetIndex(
            map(self._target, self._entries),
            {entry.meta.namespace: self._labels(entry.meta.namespace) for entry in self._entries},
        )
        placement = {workload_uid(entry, self._mesh): entry.node for entry in self._entries}
        served, conditions, origins = {}, {}, {}
        for policy in self._network_policies:
            compiled = compile_network_policy(policy, index)
            nodes = frozenset(placement[item.uid] for item in compiled.selected) - {""}
            served[compiled.key] = served_resource(
                compiled.key, encode_network_policy(compiled), nodes=nodes
            )
            key = f"NetworkPolicy {compiled.key}"
            conditions[key] = of_network_policy(compiled, len(nodes))
            origins[f"{key} ingress"] = tuple(rule.origin for rule in compiled.ingress_rules)
            origins[f"{key} egress"] = tuple(rule.origin for rule in compiled.egress_rules)
        return served, conditions, origins

    def _target(self, entry: WorkloadEntry) -> PolicyTarget:
        return PolicyTarget(
            uid=workload_uid(entry, self._mesh),
            namespace=entry.meta.namespace,
            labels=entry.labels,
            addresses=entry.addresses,
            ports={name: (port_protocol(name), port) for name, port in entry.ports.items()},
        )

    # --- workloads and services --------------------------------------------------------------

    def _addresses(
        self,
        translations: Mapping[str, Translation],
        vips: Mapping[str, tuple[IPAddress, ...]],
    ) -> dict[str, ServedResource]:
        served = {resource.name: resource for resource in self._catalog.serve(vips)}
        by_namespace: dict[str, list[WorkloadEntry]] = defaultdict(list)
        for entry in self._entries:
            by_namespace[entry.meta.namespace].append(entry)
        for namespace, entries in by_namespace.items():
            view = self._view(namespace, translations)
            for entry in entries:
                place = self._places.get(entry.node, NOWHERE)
                ill = self._illness(entry)
                resource = self._remember(
                    "WorkloadEntry",
                    entry.meta.key,
                    (entry, view, self._mesh, place, not ill),
                    lambda entry=entry, view=view, place=place, well=not ill: view.serve(
                        entry, place, healthy=well
                    ),
                )
                if ill:
                    self._ill[f"WorkloadEntry {entry.meta.key}"] = (
                        Condition(type="Healthy", status=False, reason="NotReady", message=ill),
                    )
                served[resource.name] = resource
        return served

    def _illness(self, entry: WorkloadEntry) -> str:
        """Why its node takes a workload out of its services; "" when it does not."""
        reported = self._health.get(entry.node)
        return reported.get(workload_uid(entry, self._mesh), "") if reported else ""

    def _view(self, namespace: str, translations: Mapping[str, Translation]) -> NamespaceView:
        """What rendering the workloads of one namespace depends on; the same one if unchanged."""
        local = (namespace, self._root)
        inputs = (
            self._namespaces.get(namespace),
            self._mesh,
            self._shared("backends of", namespace, self._catalog.backends(namespace)),
            self._shared(
                "policies of", namespace,
                [item for item in self._policies if item.meta.namespace in local],
            ),
            self._shared(
                "peers of", namespace,
                [item for item in self._peers if item.meta.namespace in local],
            ),
        )  # fmt: skip
        view: NamespaceView = self._remember(
            "view of",
            namespace,
            inputs,
            lambda: NamespaceView(
                namespace, self._labels(namespace), self._mesh, inputs[2], inputs[3], inputs[4],
                translations,
            ),
        )  # fmt: skip
        return view

    def _labels(self, namespace: str) -> Mapping[str, str]:
        found = self._namespaces.get(namespace)
        return found.labels if found else {NAME_LABEL: namespace}

    def _identities(self) -> dict[str, frozenset[tuple[str, str]]]:
        found: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for entry in self._entries:
            if entry.node:
                found[entry.node].add((entry.meta.namespace, entry.service_account))
        return {node: frozenset(pairs) for node, pairs in found.items()}
