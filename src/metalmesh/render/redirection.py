"""Redirection rules of a workload's netns, rule for rule Istio's (istio-facts 1.4).

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
    TABLE_MANGLE,
    TABLE_NAT,
    TABLE_RAW,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

#: every table that capture may make in a workload's netns
TABLES: Final = (TABLE_NAT, TABLE_MANGLE, TABLE_RAW)

_FROM_PROXY: Final = f"meta mark and {MARK_MASK:#x} == {MARK_FROM_PROXY:#x}"
_NOT_FROM_PROXY: Final = f"meta mark and {MARK_MASK:#x} != {MARK_FROM_PROXY:#x}"
#: every bit of a connection mark that is not ours
_FOREIGN_BITS: Final = 0xFFFFFFFF ^ MARK_MASK


@dataclass(frozen=True, kw_only=True, slots=True)
class RedirectionConfig:
    """What a workload's annotations and the node's configuration say about capture."""

    ipv6: bool = True
    dns_capture: bool = False
    #: Istio's "ingress mode": plaintext reaches the application unseen, HBONE still works
    bypass_inbound: bool = False
    #: links behind the workload (VMs, containers) whose TCP counts as the workload's own
    virtual_interfaces: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables this configuration makes."""
        return TABLES if self.dns_capture else (TABLE_NAT, TABLE_MANGLE)


@dataclass(frozen=True, slots=True)
class _Family:
    """One address family as nft spells it."""

    keyword: str
    loopback: str
    probe_source: str


_IPV4: Final = _Family("ip", "127.0.0.1", PROBE_SNAT_IPV4)
_IPV6: Final = _Family("ip6", "::1", PROBE_SNAT_IPV6)


def render_redirection(config: RedirectionConfig) -> str:
    """Return the transaction that puts the capture of one workload in force."""
    families = (_IPV4, _IPV6) if config.ipv6 else (_IPV4,)
    parts = [render_redirection_removal().rstrip()]
    parts += _table(
        TABLE_NAT,
        {
            "istio-prerouting": _nat_prerouting(config, families),
            "istio-output": _nat_output(config, families),
        },
        {
            "prerouting": "nat hook prerouting priority -100",
            "output": "nat hook output priority -100",
        },
    )
    parts += _table(
        TABLE_MANGLE,
        {"istio-prerouting": _mangle_prerouting(), "istio-output": _mangle_output()},
        # "route": the restored mark must send the reply through routing once more (1.3, step 5)
        {
            "prerouting": "filter hook prerouting priority -150",
            "output": "route hook output priority -150",
        },
    )
    if config.dns_capture:
        parts += _table(
            TABLE_RAW,
            {"istio-prerouting": _raw_prerouting(), "istio-output": _raw_output()},
            {
                "prerouting": "filter hook prerouting priority -300",
                "output": "filter hook output priority -300",
            },
        )
    return "\n".join(parts) + "\n"


def render_redirection_removal() -> str:
    """Return the transaction that ends capture; it succeeds when there was none."""
    lines = [f"{verb} table inet {table}" for table in TABLES for verb in ("add", "delete")]
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
    rules += [
        f'meta l4proto tcp {f.keyword} saddr {f.probe_source} counter accept comment "probes"'
        for f in families
    ]
    rules += [
        f"{f.keyword} daddr != {f.loopback} tcp dport != {PORT_HBONE} {_NOT_FROM_PROXY} "
        f'counter redirect to :{PORT_INBOUND_PLAINTEXT} comment "plaintext in"'
        for f in families
    ]
    return rules


def _nat_output(config: RedirectionConfig, families: Iterable[_Family]) -> list[str]:
    families = tuple(families)
    rules = [
        f"meta l4proto tcp {f.keyword} daddr {f.probe_source} "
        'counter accept comment "answers to probes"'
        for f in families
    ]
    if config.dns_capture:
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
