"""NetworkPolicy of a node's workloads as nft text: table ``inet metalmesh-policy``.

Packets are judged where they are forwarded, on the node's side of the veth, so HBONE is TCP to
port 15008 here. Two base chains follow each other: the source's egress, then the destination's
ingress; to be admitted by one is not to be admitted by the other. A verdict map finds a workload's
chain by its address, so a packet meets the rules of its own workload only, however many there are.

As in Kubernetes: a workload no policy selects is open; answers and ICMP errors of admitted
connections pass; a workload always reaches itself and its own node, and its node always reaches
it (health probes); a rule with ports admits no ICMP, a rule without ports admits it; refused
packets are dropped, not answered. Beyond Kubernetes: a workload sends from its own address only,
nobody else sends from the probes' address, and what is not known yet is closed: every workload
until the first policies arrived, one workload until the control plane knows it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import collapse_addresses
from typing import TYPE_CHECKING, Final

from metalmesh.constants import LINK_PREFIX, PROBE_SNAT_IPV4, PROBE_SNAT_IPV6, TABLE_POLICY
from metalmesh.model.exclusions import merge_ports
from metalmesh.model.network_policy import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.network_policy import (
        CompiledNetworkPolicy,
        Peer,
        PolicyPort,
        PolicyRule,
    )
    from metalmesh.model.workload import IPAddress

#: nft refuses longer comments
_MAX_COMMENT: Final = 120
_FAMILIES: Final = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundWorkload:
    """A workload of this node: its host-side link and addresses."""

    uid: str
    link: str
    addresses: tuple[IPAddress, ...]
    #: the control plane has told us about it, so its policies are known, too
    known: bool = True


@dataclass(frozen=True, slots=True)
class _Direction:
    """``ingress`` matches the workload as destination, ``egress`` as source."""

    name: str
    own: str
    peer: str
    priority: int


_EGRESS: Final = _Direction("egress", "saddr", "daddr", -10)
_INGRESS: Final = _Direction("ingress", "daddr", "saddr", 0)


def render_network_policy(
    workloads: Sequence[BoundWorkload], policies: Sequence[CompiledNetworkPolicy] | None
) -> str:
    """Return the transaction for a node; ``policies`` None: none were ever received."""
    table = _Table()
    workloads = sorted(workloads, key=lambda item: item.uid)
    if policies is None:
        workloads = [_unknown(item) for item in workloads]
    _bind(table, workloads)
    for direction in (_EGRESS, _INGRESS):
        _direction(table, direction, workloads, policies or ())
    head = [f"{verb} table inet {TABLE_POLICY}" for verb in ("add", "delete")]
    return "\n".join([*head, f"table inet {TABLE_POLICY} {{", *table.lines(), "}"]) + "\n"


def _unknown(workload: BoundWorkload) -> BoundWorkload:
    return BoundWorkload(
        uid=workload.uid, link=workload.link, addresses=workload.addresses, known=False
    )


class _Table:
    """Sets, leaf chains and base chains in the order nft wants to read them."""

    def __init__(self) -> None:
        self._sets: dict[str, list[str]] = {}
        self._chains: dict[str, list[str]] = {}
        self._maps: dict[str, list[str]] = {}

    def add_set(self, name: str, kind: str, elements: Iterable[str], *, flags: str = "") -> str:
        body = [f"type {kind}", *([f"flags {flags}"] if flags else [])]
        listed = list(elements)
        if listed:
            body.append("elements = { " + ", ".join(listed) + " }")
        self._sets[name] = [f"set {name} {{", *(f"\t{line}" for line in body), "}"]
        return name

    def add_map(self, name: str, kind: str, elements: Sequence[str]) -> str:
        body = [f"\ttype {kind} : verdict"]
        if elements:
            body.append("\telements = { " + ", ".join(elements) + " }")
        self._maps[name] = [f"map {name} {{", *body, "}"]
        return name

    def add_chain(self, name: str, rules: Sequence[str]) -> str:
        self._chains[name] = [f"chain {name} {{", *(f"\t{rule}" for rule in rules), "}"]
        return name

    def base_chain(self, name: str, hook: str, rules: Sequence[str]) -> None:
        # maps point at leaf chains, base chains at maps
        for chain, lines in self._maps.items():
            self._chains.setdefault(f"map {chain}", lines)
        self.add_chain(name, [f"type filter hook {hook}; policy accept;", *rules])

    def lines(self) -> list[str]:
        blocks = [*self._sets.values(), *self._chains.values()]
        return [f"\t{line}" for block in blocks for line in block]


def _bind(table: _Table, workloads: Sequence[BoundWorkload]) -> None:
    """Nobody sends from an address that is not his."""
    rules = []
    for version, keyword, kind in _FAMILIES:
        bound = [
            f'"{item.link}" . {address}'
            for item in workloads
            for address in item.addresses
            if address.version == version
        ]
        name = table.add_set(f"bound-v{version}", f"ifname . {kind}", bound)
        # neighbour discovery speaks from link-local and unspecified addresses
        but = "ip6 saddr != { ::, fe80::/10 } " if version == 6 else ""
        rules.append(
            f'iifname "{LINK_PREFIX}*" {but}iifname . {keyword} saddr != @{name} '
            'counter drop comment "not an address of this workload"'
        )
    for keyword, probe in (("ip", PROBE_SNAT_IPV4), ("ip6", PROBE_SNAT_IPV6)):
        rules.append(
            f'iifname != "lo" {keyword} saddr {probe} '
            'counter drop comment "probes come from this node only"'
        )
    table.base_chain("prerouting", "prerouting priority -300", rules)


def _direction(
    table: _Table,
    direction: _Direction,
    workloads: Sequence[BoundWorkload],
    policies: Sequence[CompiledNetworkPolicy],
) -> None:
    for policy in sorted(policies, key=lambda item: item.key):
        if _isolates(policy, direction):
            rules = _policy_rules(table, policy, direction)
            table.add_chain(_chain("policy", policy.key, direction), rules)
    chains = {item.uid: _workload_chain(table, item, policies, direction) for item in workloads}
    side = "iifname" if direction is _EGRESS else "oifname"
    known = table.add_set("known", "ifname", (f'"{item.link}"' for item in workloads if item.known))
    rules = [
        'ct state established,related accept comment "part of an admitted connection"',
        f'{side} "{LINK_PREFIX}*" {side} != @{known} '
        'counter drop comment "policies of this workload are not known yet"',
    ]
    for version, keyword, kind in _FAMILIES:
        elements = [
            f"{address} : goto {chains[item.uid]}"
            for item in workloads
            for address in item.addresses
            if address.version == version and chains[item.uid]
        ]
        own = [
            f"{address} . {address}"
            for item in workloads
            for address in item.addresses
            if address.version == version
        ]
        itself = table.add_set(f"self-v{version}", f"{kind} . {kind}", own)
        rules.append(f'{keyword} saddr . {keyword} daddr @{itself} accept comment "to itself"')
        name = table.add_map(f"{direction.name}-v{version}", kind, elements)
        rules.append(f"{keyword} {direction.own} vmap @{name}")
    hook = f"forward priority {direction.priority}"
    table.base_chain(f"forward-{direction.name}", hook, rules)


def _isolates(policy: CompiledNetworkPolicy, direction: _Direction) -> bool:
    return policy.ingress if direction is _INGRESS else policy.egress


def _workload_chain(
    table: _Table,
    workload: BoundWorkload,
    policies: Sequence[CompiledNetworkPolicy],
    direction: _Direction,
) -> str:
    """Make the chain of an isolated workload; return "" for one that is open."""
    name = _chain("workload", workload.uid, direction)
    keys = sorted(
        policy.key
        for policy in policies
        if _isolates(policy, direction)
        and any(item.uid == workload.uid for item in policy.selected)
    )
    if not keys:
        return ""
    rules = [f"jump {_chain('policy', key, direction)}" for key in keys]
    refused = _comment(f"{direction.name} refused by {', '.join(keys)}")
    return table.add_chain(name, [*rules, f"counter drop {refused}"])


def _policy_rules(table: _Table, policy: CompiledNetworkPolicy, direction: _Direction) -> list[str]:
    listed = policy.ingress_rules if direction is _INGRESS else policy.egress_rules
    lines = []
    for index, rule in enumerate(listed):
        comment = _comment(f"{policy.key} {direction.name} rule {index}")
        for peer in _peer_matches(table, policy, rule, direction):
            for port in _port_matches(rule.ports):
                lines.append(" ".join(filter(None, (peer, port, f"counter accept {comment}"))))
    return lines


def _peer_matches(
    table: _Table, policy: CompiledNetworkPolicy, rule: PolicyRule, direction: _Direction
) -> list[str]:
    """Alternatives that together admit the rule's peers, for the workloads it holds for."""
    if rule.peers is None and not rule.only_uids:
        return [""]
    own = [
        address
        for item in policy.selected
        if item.uid in rule.only_uids
        for address in item.addresses
    ]
    matches = []
    for version, keyword, kind in _FAMILIES:
        parts = [f"meta nfproto ipv{version}"]
        if rule.only_uids:
            mine = ", ".join(sorted(str(item) for item in own if item.version == version))
            if not mine:
                continue
            parts = [f"{keyword} {direction.own} {{ {mine} }}"]
        if rule.peers is not None:
            networks = _networks(rule.peers, version)
            if not networks:
                continue
            if networks[0].prefixlen > 0:
                name = _peer_set(table, networks, kind)
                parts.append(f"{keyword} {direction.peer} @{name}")
        matches.append(" ".join(parts))
    return matches


def _peer_set(table: _Table, networks: Sequence[IPNetwork], kind: str) -> str:
    elements = [
        str(item.network_address) if item.prefixlen == item.max_prefixlen else str(item)
        for item in networks
    ]
    name = f"peers-{_digest(','.join(elements))}"
    return table.add_set(name, kind, elements, flags="interval")


def _networks(peers: Iterable[Peer], version: int) -> list[IPNetwork]:
    """Ranges of one family, without their exceptions, as few as possible."""
    found: list[IPNetwork] = []
    for peer in peers:
        if peer.cidr.version != version:
            continue
        ranges = [peer.cidr]
        for excepted in peer.excepted:
            if excepted.version == version:
                ranges = [rest for item in ranges for rest in _without(item, excepted)]
        found += ranges
    return list(collapse_addresses(found))  # type: ignore[type-var]


def _without(network: IPNetwork, excepted: IPNetwork) -> list[IPNetwork]:
    if network.subnet_of(excepted):  # type: ignore[arg-type]
        return []
    if excepted.subnet_of(network):  # type: ignore[arg-type]
        return list(network.address_exclude(excepted))  # type: ignore[arg-type]
    return [network]


def _port_matches(ports: Sequence[PolicyPort] | None) -> list[str]:
    if ports is None:
        return [""]
    matches = []
    for protocol in Protocol:
        mine = [item for item in ports if item.protocol is protocol]
        name = protocol.value.lower()
        if any(item.port == 0 for item in mine):
            matches.append(f"meta l4proto {name}")
        elif mine:
            matches.append(f"{name} dport {{ {', '.join(_ranges(mine))} }}")
    return matches


def _ranges(ports: Iterable[PolicyPort]) -> list[str]:
    """Port ranges merged: nft refuses overlapping ones."""
    merged = merge_ports((item.port, item.end_port or item.port) for item in ports)
    return [str(low) if low == high else f"{low}-{high}" for low, high in merged]


def _chain(kind: str, key: str, direction: _Direction) -> str:
    return f"{kind}-{_digest(key)}-{direction.name}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _comment(text: str) -> str:
    short = text if len(text) <= _MAX_COMMENT else f"{text[: _MAX_COMMENT - 3]}..."
    return f'comment "{short}"'
