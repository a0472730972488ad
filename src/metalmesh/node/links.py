"""The link of a workload: a veth between its netns and the node, routed, without a bridge.

The gateway is the same for everybody (169.254.1.1, fe80::1) and lives on the node's end, so a
workload's address can move between nodes. Hardware addresses follow from the netns' name: a netns
made anew is reachable at once, not when a neighbour's cache expires.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Final

from metalmesh.constants import LINK_PREFIX
from metalmesh.errors import NetworkError
from metalmesh.net import sysctl
from metalmesh.net.netlink import Link, Route
from metalmesh.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metalmesh.model.workload import IPAddress
    from metalmesh.net.netlink import Netlink

    Interface = IPv4Interface | IPv6Interface

INTERFACE: Final = "eth0"
_CARRIER_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.002
_LOOPBACK: Final = "lo"
GATEWAYS: Final[dict[int, Interface]] = {
    4: IPv4Interface("169.254.1.1/32"),
    6: IPv6Interface("fe80::1/64"),
}
#: scope "host" keeps 169.254.1.1 from being chosen as a source address by the node
_GATEWAY_SCOPES: Final = {4: "host", 6: "link"}
_DEFAULTS: Final = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """Names and addresses of one workload's link."""

    netns: str
    addresses: tuple[IPAddress, ...]

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.netns.encode()).hexdigest()

    @property
    def host_link(self) -> str:
        """Name of the node's end."""
        return f"{LINK_PREFIX}{self._digest[:8]}"

    def mac(self, first: str) -> str:
        """A locally administered hardware address; ``first`` tells the two ends apart."""
        digits = self._digest
        return ":".join([first, "6d", *(digits[at : at + 2] for at in range(0, 8, 2))])

    @property
    def host_mac(self) -> str:
        """Hardware address of the node's end."""
        return self.mac("02")

    @property
    def netns_mac(self) -> str:
        """Hardware address of the workload's end."""
        return self.mac("06")

    @property
    def versions(self) -> list[int]:
        """IP versions the workload has addresses of."""
        return sorted({address.version for address in self.addresses})


class LinkShell:
    """Brings one workload's link into the planned state; every step is idempotent."""

    def __init__(self, plan: LinkPlan, node: Netlink, inside: Netlink, netns_fd: int) -> None:
        self._plan = plan
        self._node = node
        self._inside = inside
        self._netns_fd = netns_fd
        self.changes: list[str] = []

    def prepare_netns(self, *, ipv6: bool) -> None:
        """Settings that must precede any link, and loopback."""
        with in_netns(self._netns_fd):
            if sysctl.exists("ipv6/conf/all"):
                self._ensure_settings("ipv6/conf/all/accept_dad", "0")
                self._ensure_settings("ipv6/conf/default/accept_dad", "0")
                self._ensure_settings("ipv6/conf/default/accept_ra", "0")
                for scope in ("all", "default"):
                    self._ensure_settings(f"ipv6/conf/{scope}/disable_ipv6", str(int(not ipv6)))
        loopback = self._inside.link(_LOOPBACK)
        if loopback is not None and not loopback.up:
            self._inside.set_state(loopback.index, up=True)
            self.changes.append("loopback")

    def ensure_pair(self) -> None:
        """Make the veth pair, down, unless the right one is there."""
        node_end, inside_end = self._ends()
        if node_end is not None and inside_end is not None and _is_pair(node_end, inside_end):
            if node_end.mac != self._plan.host_mac or inside_end.mac != self._plan.netns_mac:
                self._node.set_mac(node_end.index, self._plan.host_mac)
                self._inside.set_mac(inside_end.index, self._plan.netns_mac)
                self.changes.append("hardware addresses")
            return
        if node_end is not None:
            self._node.delete_link(node_end.index)
        leftover = self._inside.link(INTERFACE)
        if leftover is not None:
            self._inside.delete_link(leftover.index)
        self._node.add_veth(
            self._plan.host_link,
            self._plan.host_mac,
            INTERFACE,
            self._plan.netns_mac,
            self._netns_fd,
        )
        self.changes.append(f"link {self._plan.host_link}")

    def configure(self, *, ipv6: bool) -> None:
        """Addresses, up, routes; the node's route to the workload comes last."""
        node_end, inside_end = self._ends()
        if node_end is None or inside_end is None:
            raise NetworkError(
                f"netns {self._plan.netns}: its link {self._plan.host_link} vanished meanwhile; "
                f"run `metalmesh node netns up {self._plan.netns}` again"
            )
        versions = [version for version in self._plan.versions if version == 4 or ipv6]
        self._configure_node_end(node_end, versions)
        self._configure_inside(inside_end, versions)
        self._ensure_routes(
            self._node,
            node_end.index,
            {
                Route(
                    destination=ip_network(address),
                    index=node_end.index,
                    scope="link" if address.version == 4 else "universe",
                )
                for address in self._plan.addresses
                if address.version in versions
            },
        )

    def wait_until_running(self) -> None:
        """Wait for the kernel to start the queues of both ends (it may take it a second)."""
        deadline = time.monotonic() + _CARRIER_SECONDS
        while not all(end is not None and end.running for end in self._ends()):
            if time.monotonic() > deadline:
                raise NetworkError(
                    f"netns {self._plan.netns}: link {self._plan.host_link} has no carrier after "
                    f"{_CARRIER_SECONDS:g} s; is one of its ends being taken down by another "
                    "program (NetworkManager, systemd-networkd)? Exclude mmw* there"
                )
            time.sleep(_POLL_SECONDS)

    def _configure_node_end(self, link: Link, versions: list[int]) -> None:
        if sysctl.exists(f"ipv6/conf/{link.name}"):
            self._ensure_settings(f"ipv6/conf/{link.name}/accept_dad", "0")
            self._ensure_settings(f"ipv6/conf/{link.name}/accept_ra", "0")
            # fe80::1 is the only link-local address wanted here
            self._ensure_settings(f"ipv6/conf/{link.name}/addr_gen_mode", "1")
        wanted = {GATEWAYS[version]: _GATEWAY_SCOPES[version] for version in versions}
        self._ensure_addresses(self._node, link.index, wanted)
        if not link.up:
            self._node.set_state(link.index, up=True)
            self.changes.append(f"{link.name} up")

    def _configure_inside(self, link: Link, versions: list[int]) -> None:
        with in_netns(self._netns_fd):
            if sysctl.exists(f"ipv6/conf/{INTERFACE}"):
                self._ensure_settings(f"ipv6/conf/{INTERFACE}/accept_dad", "0")
        addresses: dict[Interface, str] = {
            ip_interface(address): "universe"
            for address in self._plan.addresses
            if address.version in versions
        }
        self._ensure_addresses(self._inside, link.index, addresses)
        if not link.up:
            self._inside.set_state(link.index, up=True)
            self.changes.append(f"{INTERFACE} up")
        self._ensure_routes(
            self._inside,
            link.index,
            {
                Route(
                    destination=_DEFAULTS[version],
                    index=link.index,
                    gateway=ip_address(GATEWAYS[version].ip),
                    onlink=version == 4,
                )
                for version in versions
            },
        )

    def _ends(self) -> tuple[Link | None, Link | None]:
        return self._node.link(self._plan.host_link), self._inside.link(INTERFACE)

    def _ensure_settings(self, name: str, value: str) -> None:
        if sysctl.ensure(name, value):
            self.changes.append(f"setting {name}")

    def _ensure_addresses(self, netlink: Netlink, index: int, wanted: dict[Interface, str]) -> None:
        live = {
            address
            for address in netlink.addresses(index)
            # the kernel makes a link-local address of its own inside
            if not address.ip.is_link_local or address in GATEWAYS.values()
        }
        for address in live - wanted.keys():
            netlink.delete_address(index, address)
            self.changes.append(f"address {address} removed")
        for address in wanted.keys() - live:
            netlink.add_address(index, address, wanted[address])
            self.changes.append(f"address {address}")

    def _ensure_routes(self, netlink: Netlink, index: int, wanted: set[Route]) -> None:
        live = {route for route in netlink.routes() if route.index == index}
        for route in _sorted(live - wanted):
            netlink.delete_route(route)
            self.changes.append(f"route {route.destination} removed")
        for route in _sorted(wanted - live):
            netlink.replace_route(route)
            self.changes.append(f"route {route.destination}")


def _is_pair(one: Link, other: Link) -> bool:
    return (
        one.kind == "veth"
        and other.kind == "veth"
        and one.peer_index == other.index
        and other.peer_index == one.index
    )


def _sorted(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: str(route.destination))


def remove_link(node: Netlink, netns: str) -> bool:
    """Remove a workload's link and with it its routes; return whether there was one."""
    link = node.link(LinkPlan(netns, ()).host_link)
    if link is not None:
        node.delete_link(link.index)
    return link is not None
