"""What the node's own namespace needs: routes to other nodes, services, probes, the DNS address.

Everything is idempotent, returns what it changed and runs in the agent's network thread with the
node's lock held.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from metalmesh.constants import TABLE_NAT, TABLE_POLICY, TABLE_SERVICES
from metalmesh.errors import StoreError
from metalmesh.net import nft
from metalmesh.net.netlink import Route, open_netlink
from metalmesh.node.netns import ensure_node_settings
from metalmesh.node.node_tables import ensure_policy_table, ensure_table
from metalmesh.render.probes import render_probes
from metalmesh.render.services import render_services
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from metalmesh.model.workload import IPAddress
    from metalmesh.net.netlink import Netlink
    from metalmesh.node.config import NodeConfig
    from metalmesh.node.state import NodeState, PolicyState
    from metalmesh.render.services import VirtualPort

_LOOPBACK: Final = "lo"

log = Log("metalmesh.node.network")


class NodeNetwork:
    """Brings the node's own namespace into the wanted state."""

    def __init__(self, config: NodeConfig, state: NodeState) -> None:
        self._config = config
        self._state = state

    def ensure_policies(self, received: PolicyState | None) -> list[str]:
        """The NetworkPolicy table for the namespaces that are up.

        The policies are saved as well, for ``netns up``; a full disk does not keep them from force.
        """
        if received is not None:
            try:
                self._state.save_policies(received)
            except StoreError as error:
                log.error("policies are in force but cannot be saved", {"error": str(error)})
        with self._state.locked():
            records = self._state.records(must_exist=True)
            return ensure_policy_table(self._state, records.values(), received)

    def ensure_services(
        self, ports: Sequence[VirtualPort], hairpins: Sequence[IPAddress]
    ) -> list[str]:
        """The table of virtual addresses."""
        text = render_services(ports, [self._config.service_cidr], hairpins)
        with self._state.locked():
            return ensure_table(self._state, TABLE_SERVICES, text)

    def ensure_probes(self, enrolled: Mapping[IPAddress, str]) -> list[str]:
        """The table that marks our own health probes."""
        text = render_probes(enrolled, os.geteuid())
        with self._state.locked():
            return ensure_table(self._state, TABLE_NAT, text)

    def ensure_basics(self) -> list[str]:
        """Forwarding, the DNS address and a way for the node itself to virtual addresses."""
        changes = []
        with self._state.locked(), open_netlink() as netlink:
            changes += ensure_node_settings(ipv6=self._config.ipv6)
            loopback = netlink.link(_LOOPBACK)
            assert loopback is not None, "every network namespace has a loopback device"
            if not loopback.up:
                netlink.set_state(loopback.index, up=True)
                changes.append("loopback")
            address = IPv4Interface(f"{self._config.dns_address}/32")
            if address not in netlink.addresses(loopback.index):
                netlink.add_address(loopback.index, address, "host")
                changes.append(f"address {address}")
            changes += self._ensure_service_route(netlink, loopback.index)
        return changes

    def _ensure_service_route(self, netlink: Netlink, loopback: int) -> list[str]:
        """A route must exist before the output hook can send a packet elsewhere."""
        wanted = {Route(destination=self._config.service_cidr, index=loopback, scope="link")}
        live = {route for route in netlink.routes() if route.index == loopback}
        return _replace(netlink, live, wanted)

    def ensure_node_routes(self, routes: set[Route]) -> list[str]:
        """Routes to the other nodes' workloads."""
        with self._state.locked(), open_netlink() as netlink:
            # the kernel adds the device that leads to a gateway
            found = {
                route: Route(destination=route.destination, gateway=route.gateway, kind=route.kind)
                for route in netlink.routes()
                if (route.gateway is not None and route.destination.prefixlen > 0)
                or route.kind == "unreachable"
            }
            wanted = {
                route for route in routes if route.destination.version == 4 or self._config.ipv6
            }
            return _replace(netlink, set(found.values()), wanted)


def _replace(netlink: Netlink, live: set[Route], wanted: set[Route]) -> list[str]:
    changes = []
    for route in sorted(live - wanted, key=str):
        netlink.delete_route(route)
        changes.append(f"route {route.destination} removed")
    for route in sorted(wanted - live, key=str):
        netlink.replace_route(route)
        changes.append(f"route {route.destination}")
    return changes


def remove_all(config: NodeConfig, state: NodeState) -> list[str]:
    """Remove tables, addresses and routes of the node; forwarding stays as it is."""
    changes = []
    with state.locked(), open_netlink() as netlink:
        present = {name for family, name in nft.list_tables() if family == "inet"}
        for name in (TABLE_POLICY, TABLE_SERVICES, TABLE_NAT):
            if name in present:
                nft.apply_ruleset(f"delete table inet {name}\n")
                changes.append(f"table {name}")
        state.forget_table_marks()
        for route in sorted(netlink.routes(), key=str):
            netlink.delete_route(route)
            changes.append(f"route {route.destination}")
        loopback = netlink.link(_LOOPBACK)
        address = IPv4Interface(f"{config.dns_address}/32")
        if loopback is not None and address in netlink.addresses(loopback.index):
            netlink.delete_address(loopback.index, address)
            changes.append(f"address {address}")
    return changes
