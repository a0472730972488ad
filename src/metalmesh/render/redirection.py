"""Redirection rules of a workload's netns, rule for rule Istio's (istio-facts 1.4).

A machine's own namespace can be captured, too, for one workload. It also forwards what belongs to
others, so there only connections to the workload's own addresses are inbound; the tables have
names of their own, beside the node's, and come before its services: the ztunnel must see the
virtual address.

Each text is one transaction for ``nft -f -``: the tables are made anew as a whole, so that nothing
foreign survives in them and no packet ever meets a half-made set. Marks are compared under
``MARK_MASK``; only 127.0.0.1 and ::1 count as loopback; UDP other than DNS, and ICMP, pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metalmesh.constants import (
    DNS_CONNTRACK_ZONE,
    MARK_FROM_PROXY,
    MARK_MASK,
    MARK_TRACKED,
    PORT_DNS,
    PORT_HBONE,
    PORT_INBOUND_PLAINTEXT,
    PORT_OUTBOUND,
    PROBE_SNAT_IPV4,
    PROBE_SNAT_IPV6,
    TABLE_HOST_MANGLE,
    TABLE_HOST_NAT,
    TABLE_MANGLE,
    TABLE_NAT,
    TABLE_RAW,
)
from metalmesh.model.exclusions import NO_EXCLUSIONS, Exclusions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metalmesh.model.exclusions import PortRange
    from metalmesh.model.workload import IPAddress

#: every table that capture may make in a workload's netns
TABLES: Final = (TABLE_NAT, TABLE_MANGLE, TABLE_RAW)
#: the same in the machine's own namespace
HOST_TABLES: Final = (TABLE_HOST_NAT, TABLE_HOST_MANGLE)

_FROM_PROXY: Final = f"meta mark and {MARK_MASK:#x} == {MARK_FROM_PROXY:#x}"
_NOT_FROM_PROXY: Final = f"meta mark and {MARK_MASK:#x} != {MARK_FROM_PROXY:#x}"
#: every bit of a connection mark that is not ours
_FOREIGN_BITS: Final = 0xFFFFFFFF ^ MARK_MASK
_NAT_PRIORITY: Final = -100
#: before the node's own translation of virtual addresses
_HOST_NAT_PRIORITY: Final = -110


@dataclass(frozen=True, kw_only=True, slots=True)
class HostScope:
    """What makes capture in the machine's own namespace different."""

    #: the workload's: connections to any other address are forwarded or the node's own business
    addresses: tuple[IPAddress, ...]
    #: group of the proxy, whose connections to the control plane have no mark
    proxy_group: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RedirectionConfig:
    """What a workload's annotations and the node's configuration say about capture."""

    ipv6: bool = True
    dns_capture: bool = False
    #: Istio's "ingress mode": plaintext reaches the application unseen, HBONE still works
    bypass_inbound: bool = False
    #: links behind the workload (VMs, containers) whose TCP counts as the workload's own
    virtual_interfaces: tuple[str, ...] = ()
    exclusions: Exclusions = NO_EXCLUSIONS
    #: None: the namespace is the workload's alone
    host: HostScope | None = None

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables this configuration makes."""
        if self.host is not None:
            return HOST_TABLES
        return TABLES if self.dns_capture else (TABLE_NAT, TABLE_MANGLE)


@dataclass(frozen=True, slots=True)
class _Family:
    """One address family as nft spells it."""

    version: int
    keyword: str
    loopback: str
    probe_source: str


_IPV4: Final = _Family(4, "ip", "127.0.0.1", PROBE_SNAT_IPV4)
_IPV6: Final = _Family(6, "ip6", "::1", PROBE_SNAT_IPV6)


def render_redirection(config: RedirectionConfig) -> str:
    """Return the transaction that puts the capture of one workload in force."""
    families = (_IPV4, _IPV6) if config.ipv6 else (_IPV4,)
    host = config.host is not None
    nat, mangle = HOST_TABLES if host else (TABLE_NAT, TABLE_MANGLE)
    priority = _HOST_NAT_PRIORITY if host else _NAT_PRIORITY
    parts = [render_redirection_removal(host=host).rstrip()]
    parts += _table(
        nat,
        {
            "istio-prerouting": _nat_prerouting(config, families),
            "istio-output": _nat_output(config, families),
        },
        {
            "prerouting": f"nat hook prerouting priority {priority}",
            "output": f"nat hook output priority {priority}",
        },
    )
    parts += _table(
        mangle,
        {"istio-prerouting": _mangle_prerouting(), "istio-output": _mangle_output()},
        # "route": the restored mark must send the reply through routing once more (1.3, step 5)
        {
            "prerouting": "filter hook prerouting priority -150",
            "output": "route hook output priority -150",
        },
    )
    if TABLE_RAW in config.tables:
        parts += _table(
            TABLE_RAW,
            {"istio-prerouting": _raw_prerouting(), "istio-output": _raw_output()},
            {
                "prerouting": "filter hook prerouting priority -300",
                "output": "filter hook output priority -300",
            },
        )
    return "\n".join(parts) + "\n"


def render_redirection_removal(*, host: bool = False) -> str:
    """Return the transaction that ends capture; it succeeds when there was none."""
    tables = HOST_TABLES if host else TABLES
    lines = [f"{verb} table inet {table}" for table in tables for verb in ("add", "delete")]
    return "\n".join(lines) + "\n"


def _table(name: str, leaves: dict[str, list[str]], bases: dict[str, str]) -> list[str]:
    """Leaf chains first: a base chain jumps to ``istio-`` and its own name."""
    leaves = {chain: rules for chain, rules in leaves.items() if rules}
    lines = [f"table inet {name} {{"]
    for chain, rules in leaves.items():
        lines += [f"\tchain {chain} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]
    for chain, hook in bases.items():
        if f"istio-{chain}" in leaves:
            lines += [
                f"\tchain {chain} {{",
                f"\t\ttype {hook}; policy accept;",
                f"\t\tjump istio-{chain}",
                "\t}",
            ]
    return [*lines, "}"]


def _nat_prerouting(config: RedirectionConfig, families: Iterable[_Family]) -> list[str]:
    families = tuple(families)
    rules = []
    for interface in config.virtual_interfaces:
        behind = f'iifname "{interface}" meta l4proto tcp counter'
        rules += [
            f'{behind} redirect to :{PORT_OUTBOUND} comment "from {interface}"',
            f'{behind} return comment "from {interface}, never inbound"',
        ]
    if config.bypass_inbound:
        return rules
    if config.host is not None:
        return rules + [
            rule for f in families for rule in _host_inbound(config.host, config.exclusions, f)
        ]
    rules += [
        f'meta l4proto tcp {f.keyword} saddr {f.probe_source} counter accept comment "probes"'
        for f in families
    ]
    rules += _excluded("tcp dport", config.exclusions.inbound_ports)
    rules += [
        f"{f.keyword} daddr != {f.loopback} tcp dport != {PORT_HBONE} {_NOT_FROM_PROXY} "
        f'counter redirect to :{PORT_INBOUND_PLAINTEXT} comment "plaintext in"'
        for f in families
    ]
    return rules


def _host_inbound(host: HostScope, exclusions: Exclusions, family: _Family) -> list[str]:
    """Plaintext to the workload's own addresses, which the node's other duties must not lose."""
    own = ", ".join(str(item) for item in host.addresses if item.version == family.version)
    if not own:
        return []
    to_us = f"{family.keyword} daddr {{ {own} }}"
    return [
        *(f"{to_us} {rule}" for rule in _excluded("tcp dport", exclusions.inbound_ports)),
        f"{to_us} tcp dport != {PORT_HBONE} {_NOT_FROM_PROXY} "
        f'counter redirect to :{PORT_INBOUND_PLAINTEXT} comment "plaintext in"',
    ]


def _excluded(match: str, ports: Iterable[PortRange]) -> list[str]:
    """Accept these ports as they are."""
    words = [str(low) if low == high else f"{low}-{high}" for low, high in ports]
    if not words:
        return []
    return [f'{match} {{ {", ".join(words)} }} counter accept comment "excluded"']


def _nat_output(config: RedirectionConfig, families: Iterable[_Family]) -> list[str]:
    families = tuple(families)
    rules = [
        f"meta l4proto tcp {f.keyword} daddr {f.probe_source} "
        'counter accept comment "answers to probes"'
        for f in families
    ]
    rules += _excluded_outbound(config, families)
    if config.dns_capture and config.host is None:
        to_proxy = f"counter redirect to :{PORT_DNS}"
        rules.append(
            f'oifname != "lo" {_NOT_FROM_PROXY} udp dport 53 {to_proxy} comment "dns over udp"'
        )
        rules += [
            f"{f.keyword} daddr != {f.loopback} tcp dport 53 {_NOT_FROM_PROXY} {to_proxy} "
            'comment "dns over tcp"'
            for f in families
        ]
    tracked = f"meta mark and {MARK_MASK:#x} == {MARK_TRACKED:#x}"
    rules.append(f'meta l4proto tcp {tracked} counter accept comment "answers to the proxy"')
    if config.host is not None:
        # not by the link: the node routes virtual addresses to its loopback
        rules.append('fib daddr type local counter accept comment "to itself"')
    else:
        rules += [
            f'oifname "lo" {f.keyword} daddr != {f.loopback} counter accept comment "to itself"'
            for f in families
        ]
    rules += [
        f"meta l4proto tcp {f.keyword} daddr != {f.loopback} {_NOT_FROM_PROXY} "
        f'counter redirect to :{PORT_OUTBOUND} comment "outbound"'
        for f in families
    ]
    return rules


def _excluded_outbound(config: RedirectionConfig, families: Iterable[_Family]) -> list[str]:
    exclusions = config.exclusions
    rules = _excluded("tcp dport", exclusions.outbound_ports)
    for family in families:
        networks = [
            str(item) for item in exclusions.outbound_cidrs if item.version == family.version
        ]
        if networks:
            rules.append(
                f"meta l4proto tcp {family.keyword} daddr {{ {', '.join(networks)} }} "
                'counter accept comment "excluded"'
            )
    if config.host is not None:
        # an answer of a connection that the kernel has forgotten is no new one
        rules += _excluded("tcp sport", exclusions.inbound_ports)
        rules.append(
            f'meta skgid {config.host.proxy_group} counter accept comment "the proxy\'s own"'
        )
    return rules


def _mangle_prerouting() -> list[str]:
    tracked = f"ct mark set ct mark and {_FOREIGN_BITS:#x} or {MARK_TRACKED:#x}"
    return [f'{_FROM_PROXY} counter {tracked} comment "remember the proxy\'s flows"']


def _mangle_output() -> list[str]:
    return [
        f"ct mark and {MARK_MASK:#x} == {MARK_TRACKED:#x} counter meta mark set ct mark "
        'comment "answers return to the proxy"'
    ]


def _raw_prerouting() -> list[str]:
    return [
        f"udp sport 53 {_NOT_FROM_PROXY} counter ct zone set {DNS_CONNTRACK_ZONE} "
        'comment "answers to the proxy\'s own dns"'
    ]


def _raw_output() -> list[str]:
    return [
        f"udp dport 53 {_FROM_PROXY} counter ct zone set {DNS_CONNTRACK_ZONE} "
        'comment "the proxy\'s own dns"'
    ]
