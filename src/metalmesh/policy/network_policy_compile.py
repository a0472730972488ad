"""Compile Kubernetes NetworkPolicies: every selector becomes addresses.

Workloads are what pods are in Kubernetes. A named port of ingress is looked up at the selected
workload, one of egress at the peer; a rule with named ports therefore becomes several rules.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from metalmesh.model.resources.network_policy import (
        NetworkPolicyResource,
        PeerEntry,
        PortEntry,
        RuleEntry,
    )
    from metalmesh.model.workload import IPAddress


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyTarget:
    """A workload as selectors see it."""

    uid: str
    namespace: str
    labels: Mapping[str, str]
    addresses: tuple[IPAddress, ...]
    #: port name to protocol and number
    ports: Mapping[str, tuple[Protocol, int]]


class TargetIndex:
    """The workloads by namespace, with the namespaces' labels."""

    def __init__(
        self,
        targets: Iterable[PolicyTarget],
        namespace_labels: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._by_namespace: dict[str, list[PolicyTarget]] = defaultdict(list)
        for target in targets:
            self._by_namespace[target.namespace].append(target)
        self._labels = namespace_labels

    def in_namespace(self, namespace: str) -> Sequence[PolicyTarget]:
        """The workloads of one namespace."""
        return self._by_namespace.get(namespace, ())

    def select(self, peer: PeerEntry, own_namespace: str) -> list[PolicyTarget]:
        """The workloads a peer means: namespaces AND labels."""
        if peer.namespaces is None:
            namespaces = [own_namespace]
        else:
            namespaces = [
                name
                for name in self._by_namespace
                if peer.namespaces.matches(self._labels.get(name, {}))
            ]
        return [
            target
            for name in namespaces
            for target in self.in_namespace(name)
            if peer.workloads is None or peer.workloads.matches(target.labels)
        ]

    def all(self) -> list[PolicyTarget]:
        """Every workload."""
        return [target for targets in self._by_namespace.values() for target in targets]


def compile_network_policy(
    policy: NetworkPolicyResource, index: TargetIndex
) -> CompiledNetworkPolicy:
    """Resolve one policy against the workloads."""
    selected = [
        target
        for target in index.in_namespace(policy.meta.namespace)
        if policy.selector.matches(target.labels)
    ]
    compiler = _Compiler(policy.meta.namespace, selected, index)
    return CompiledNetworkPolicy(
        name=policy.meta.name,
        namespace=policy.meta.namespace,
        selected=tuple(SelectedWorkload(target.uid, target.addresses) for target in selected),
        ingress=policy.ingress,
        egress=policy.egress,
        ingress_rules=tuple(
            replace(rule, origin=index)
            for index, entry in enumerate(policy.ingress_rules)
            if policy.ingress
            for rule in compiler.ingress(entry)
        ),
        egress_rules=tuple(
            replace(rule, origin=index)
            for index, entry in enumerate(policy.egress_rules)
            if policy.egress
            for rule in compiler.egress(entry)
        ),
    )


@dataclass(frozen=True, slots=True)
class _Compiler:
    namespace: str
    selected: list[PolicyTarget]
    index: TargetIndex

    def ingress(self, entry: RuleEntry) -> list[PolicyRule]:
        peers = self._peers(entry)
        numeric, named = _split_ports(entry.ports)
        if not entry.ports:
            return [PolicyRule(peers=peers)]
        rules = [PolicyRule(peers=peers, ports=numeric)] if numeric else []
        by_ports: dict[tuple[PolicyPort, ...], set[str]] = defaultdict(set)
        for target in self.selected:
            ports = _resolve(named, target)
            if ports:
                by_ports[ports].add(target.uid)
        for ports, uids in by_ports.items():
            rules.append(PolicyRule(peers=peers, ports=ports, only_uids=frozenset(uids)))
        # names that nobody has: the rule exists and admits nothing
        return rules or [PolicyRule(peers=peers, ports=())]

    def egress(self, entry: RuleEntry) -> list[PolicyRule]:
        peers = self._peers(entry)
        numeric, named = _split_ports(entry.ports)
        if not entry.ports:
            return [PolicyRule(peers=peers)]
        rules = [PolicyRule(peers=peers, ports=numeric)] if numeric else []
        by_ports: dict[tuple[PolicyPort, ...], list[Peer]] = defaultdict(list)
        for target in self.index.all() if named else ():
            ports = _resolve(named, target)
            for address in target.addresses if ports else ():
                if peers is None or any(peer.admits(address) for peer in peers):
                    by_ports[ports].append(_host(address))
        for ports, hosts in by_ports.items():
            rules.append(PolicyRule(peers=tuple(hosts), ports=ports))
        return rules or [PolicyRule(peers=peers, ports=())]

    def _peers(self, entry: RuleEntry) -> tuple[Peer, ...] | None:
        """Addresses of the entry's peers, each once; None means any."""
        if not entry.peers:
            return None
        found: dict[Peer, None] = {}
        for peer in entry.peers:
            if peer.ip_block is not None:
                found[Peer(peer.ip_block.cidr, peer.ip_block.excepted)] = None
                continue
            for target in self.index.select(peer, self.namespace):
                found.update(dict.fromkeys(map(_host, target.addresses)))
        return tuple(found)


def _host(address: IPAddress) -> Peer:
    return Peer(ipaddress.ip_network(address))


def _split_ports(
    ports: tuple[PortEntry, ...],
) -> tuple[tuple[PolicyPort, ...], list[PortEntry]]:
    """Numeric ports ready to use, and the named ones."""
    numeric = tuple(
        PolicyPort(entry.protocol, entry.port, entry.end_port)
        for entry in ports
        if isinstance(entry.port, int)
    )
    return numeric, [entry for entry in ports if isinstance(entry.port, str)]


def _resolve(named: list[PortEntry], target: PolicyTarget) -> tuple[PolicyPort, ...]:
    """Named ports at one workload; a name it does not have for that protocol admits nothing."""
    found = []
    for entry in named:
        protocol, number = target.ports.get(str(entry.port), (None, 0))
        if protocol is entry.protocol:
            found.append(PolicyPort(protocol, number))
    return tuple(found)


def port_protocol(name: str) -> Protocol:
    """Protocol of a WorkloadEntry's port: by Istio's naming (``udp-dns``), TCP otherwise."""
    prefix = name.partition("-")[0]
    return {"udp": Protocol.UDP, "sctp": Protocol.SCTP}.get(prefix, Protocol.TCP)
