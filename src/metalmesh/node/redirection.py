"""Puts the capture of a workload in force inside its netns, and notices when somebody changed it.

In force means: the three tables, the ``ip rule`` for tracked marks and the local routes of its
table (istio-facts 1.2). What the kernel shows right after our own load is the reference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from ipaddress import ip_network
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Final

from metalmesh.constants import MARK_MASK, MARK_TRACKED, ROUTE_TABLE, RULE_PRIORITY
from metalmesh.net import nft
from metalmesh.net.netlink import MarkRule, Route
from metalmesh.render.redirection import (
    TABLES,
    RedirectionConfig,
    render_redirection,
    render_redirection_removal,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.net.netlink import Netlink
    from metalmesh.node.config import NodeConfig
    from metalmesh.node.workload_spec import LocalWorkload

_LOOPBACK_INDEX: Final = 1
_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}


@dataclass(frozen=True, slots=True)
class Applied:
    """The redirection of one netns as it was loaded; empty when there is none."""

    digest: str = ""
    tables: Mapping[str, str] = field(default_factory=dict)


def ensure_redirection(
    workload: LocalWorkload,
    config: NodeConfig,
    netns_fd: int,
    netlink: Netlink,
    before: Applied,
) -> tuple[Applied, list[str]]:
    """Make the live state the wanted one; return it and what had to be changed."""
    # routing first: a tracked mark without its route would send answers out of the netns
    changes = _ensure_routing(netlink, wanted=workload.captured, ipv6=config.ipv6)
    if not workload.captured:
        return _remove(netns_fd, changes)
    text = render_redirection(_redirection_config(workload, config))
    digest = hashlib.sha256(text.encode()).hexdigest()
    live = nft.fingerprints(TABLES, netns_fd)
    if before.digest == digest and live == before.tables:
        return before, changes
    nft.apply_ruleset(text, netns_fd)
    differing = [name for name in TABLES if live.get(name) != before.tables.get(name)]
    named = ", ".join(differing) if before.digest == digest else "new configuration"
    return Applied(digest, nft.fingerprints(TABLES, netns_fd)), [
        *changes,
        f"redirection rules ({named})",
    ]


def _remove(netns_fd: int, changes: list[str]) -> tuple[Applied, list[str]]:
    present = {name for family, name in nft.list_tables(netns_fd) if family == "inet"}
    if present.isdisjoint(TABLES):
        return Applied(), changes
    nft.apply_ruleset(render_redirection_removal(), netns_fd)
    return Applied(), [*changes, "redirection rules removed"]


def _redirection_config(workload: LocalWorkload, config: NodeConfig) -> RedirectionConfig:
    capture = workload.dns_capture
    return RedirectionConfig(
        ipv6=config.ipv6,
        dns_capture=config.dns_capture if capture is None else capture,
        bypass_inbound=workload.bypass_inbound,
        virtual_interfaces=workload.virtual_interfaces,
    )


def _ensure_routing(netlink: Netlink, *, wanted: bool, ipv6: bool) -> list[str]:
    versions = ([4, 6] if ipv6 else [4]) if wanted else []
    rules = {
        MarkRule(_FAMILIES[version], RULE_PRIORITY, MARK_TRACKED, MARK_MASK, ROUTE_TABLE)
        for version in versions
    }
    routes = {_local_route(version) for version in versions}
    live_routes = netlink.routes(table=ROUTE_TABLE, own=False)
    live_rules = netlink.mark_rules(RULE_PRIORITY)
    for route in sorted(live_routes - routes, key=str):
        netlink.delete_route(route)
    for route in sorted(routes - live_routes, key=str):
        netlink.replace_route(route)
    for rule in live_rules - rules:
        netlink.delete_mark_rule(rule)
    for rule in rules - live_rules:
        netlink.add_mark_rule(rule)
    changes = []
    if routes != live_routes:
        changes.append(f"routes of table {ROUTE_TABLE}")
    if rules != live_rules:
        changes.append(f"ip rule {RULE_PRIORITY}")
    return changes


def _local_route(version: int) -> Route:
    return Route(
        destination=ip_network("0.0.0.0/0" if version == 4 else "::/0"),
        index=_LOOPBACK_INDEX,
        table=ROUTE_TABLE,
        kind="local",
        scope="host" if version == 4 else "universe",
    )
