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
from metalmesh.errors import CaptureError, NetworkError
from metalmesh.net import nft
from metalmesh.net.netlink import MarkRule, Route
from metalmesh.node.groups import group_id
from metalmesh.render.redirection import (
    HOST_TABLES,
    TABLES,
    HostScope,
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
    netns_fd: int | None,
    netlink: Netlink,
    before: Applied,
) -> tuple[Applied, list[str]]:
    """Make the live state the wanted one; return it and what had to be changed."""
    tables = HOST_TABLES if workload.is_host else TABLES
    # routing first: a tracked mark without its route would send answers out of the netns
    try:
        changes = _ensure_routing(
            netlink, wanted=workload.captured, ipv6=config.ipv6, shared=workload.is_host
        )
    except NetworkError as error:
        raise CaptureError(f"netns {workload.netns} cannot be captured: {error}") from error
    if not workload.captured:
        return Applied(), changes + remove_tables(tables, netns_fd)
    rendered = redirection_config(workload, config)
    text = render_redirection(rendered)
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        live = nft.fingerprints(tables, netns_fd)
    except NetworkError:
        live = {}  # what cannot be looked at is loaded anew
    if before.digest == digest and live == before.tables:
        return before, changes
    loaded = _load(workload.netns, text, rendered.tables, netns_fd)
    differing = [name for name in tables if live.get(name) != before.tables.get(name)]
    named = ", ".join(differing) if before.digest == digest else "new configuration"
    return Applied(digest, loaded), [*changes, f"redirection rules ({named})"]


def _load(netns: str, text: str, tables: tuple[str, ...], netns_fd: int | None) -> dict[str, str]:
    """Load the tables; return their fingerprints, by which drift is told from now on."""
    try:
        nft.apply_ruleset(text, netns_fd)
    except NetworkError as error:
        raise CaptureError(f"netns {netns} cannot be captured: {error}") from error
    loaded = nft.fingerprints(tables, netns_fd)
    if missing := set(tables) - loaded.keys():
        raise CaptureError(
            f"netns {netns} cannot be captured: somebody removed {', '.join(sorted(missing))} as "
            "soon as it was there"
        )
    return loaded


def remove_host_redirection(netlink: Netlink) -> list[str]:
    """End the capture of the machine's own namespace; return what there was."""
    changes = remove_tables(HOST_TABLES, None)
    return changes + _ensure_routing(netlink, wanted=False, ipv6=False, shared=True)


def remove_tables(tables: tuple[str, ...], netns_fd: int | None) -> list[str]:
    """Remove the tables of capture."""
    present = {name for family, name in nft.list_tables(netns_fd) if family == "inet"}
    if present.isdisjoint(tables):
        return []
    nft.apply_ruleset(render_redirection_removal(host=tables is HOST_TABLES), netns_fd)
    return ["redirection rules removed"]


def redirection_config(workload: LocalWorkload, config: NodeConfig) -> RedirectionConfig:
    """What to render for a workload of this node."""
    capture = workload.dns_capture
    exclusions = workload.exclusions | config.exclusions
    host = None
    if workload.is_host:
        exclusions |= config.host_exclusions
        host = HostScope(addresses=workload.addresses, proxy_group=group_id(config.ztunnel_group))
    return RedirectionConfig(
        ipv6=config.ipv6,
        dns_capture=host is None and (config.dns_capture if capture is None else capture),
        bypass_inbound=workload.bypass_inbound,
        virtual_interfaces=workload.virtual_interfaces,
        exclusions=exclusions,
        host=host,
    )


def _ensure_routing(netlink: Netlink, *, wanted: bool, ipv6: bool, shared: bool) -> list[str]:
    """Rule and routes of tracked marks; in a ``shared`` namespace others may have theirs."""
    versions = ([4, 6] if ipv6 else [4]) if wanted else []
    rules = {_mark_rule(version) for version in versions}
    routes = {_local_route(version) for version in versions}
    live_routes = netlink.routes(table=ROUTE_TABLE, own=False)
    live_rules = netlink.mark_rules(RULE_PRIORITY)
    if shared:
        foreign = live_routes - {_local_route(version) for version in _FAMILIES}
        if foreign and wanted:
            raise NetworkError(
                f"routing table {ROUTE_TABLE} of this machine is used by somebody else "
                f"({', '.join(sorted(str(item.destination) for item in foreign))}): the answers of "
                "a host workload need it; use another table for those routes"
            )
        live_routes -= foreign
        live_rules &= {_mark_rule(version) for version in _FAMILIES}
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


def _mark_rule(version: int) -> MarkRule:
    return MarkRule(_FAMILIES[version], RULE_PRIORITY, MARK_TRACKED, MARK_MASK, ROUTE_TABLE)


def _local_route(version: int) -> Route:
    return Route(
        destination=ip_network("0.0.0.0/0" if version == 4 else "::/0"),
        index=_LOOPBACK_INDEX,
        table=ROUTE_TABLE,
        kind="local",
        scope="host" if version == 4 else "universe",
    )
