"""What a lab consists of, computed from its description. Pure: data in, data out.

The description is an Ansible inventory in YAML; the driver reads three host variables there:
``lab_index``, ``lab_image`` and ``lab_routes``. Everything else belongs to the plays.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from lab.driver import names
from lab.driver.errors import InventoryError

IMAGES = ("trixie", "bookworm")
"""Debian releases a node can run; the first is the default."""
ROUTER_INDEX = 1
"""Last octet of the fabric's router, every node's default gateway."""
HOST_INDEX = 254
"""Last octet of the host, from where ssh comes."""
MAX_NUMBER = 250
"""Labs are numbered 0 (``default``) to 250: the third octet of the underlay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of a lab."""

    lab: str
    number: int
    """Number of the lab."""
    name: str
    index: int
    """Last octet of the node's addresses."""
    image: str
    """Debian release."""
    groups: tuple[str, ...]
    """Inventory groups, outermost first."""
    routes: tuple[str, ...]
    """Networks (CIDR) the fabric's router sends to this node."""

    @property
    def object_name(self) -> str:
        """Name of the machine, its network namespace and its cgroup."""
        return names.object_name(self.lab, self.name)

    @property
    def link(self) -> str:
        """Name of the fabric's end of the node's link."""
        return names.node_link(self.name)

    @property
    def mac(self) -> str:
        """Fixed, or peers keep a stale neighbour entry for half a minute after a rebuild."""
        return f"02:6d:6d:{self.number:02x}:00:{self.index:02x}"

    @property
    def address_v4(self) -> str:
        """IPv4 address of eth0."""
        return underlay_v4(self.number, self.index)

    @property
    def address_v6(self) -> str:
        """IPv6 address of eth0."""
        return underlay_v6(self.number, self.index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole lab."""

    name: str
    number: int
    nodes: tuple[Node, ...]

    @property
    def fabric(self) -> str:
        """Network namespace with the bridge and the fabric's end of every node's link."""
        return names.object_name(self.name, names.FABRIC_PART)

    @property
    def host_link(self) -> str:
        """Link of the host into the fabric."""
        return names.host_link(self.number)

    def node(self, name: str) -> Node:
        """The node called that, or an error that lists the ones there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise InventoryError(f"lab {self.name!r} has no node {name!r}; it has {known}")


def underlay_v4(number: int, index: int) -> str:
    """IPv4 address of a station in the underlay 10.77.<number>.0/24."""
    return f"10.77.{number}.{index}"


def underlay_v6(number: int, index: int) -> str:
    """IPv6 address of a station in the underlay fd77:0:0:<number>::/64.

    The last group shows the same digits as the IPv4 address, as operators write it.
    """
    return str(ipaddress.IPv6Address(f"fd77:0:0:{number:x}::{index}"))


def underlays(number: int) -> tuple[ipaddress.IPv4Network, ipaddress.IPv6Network]:
    """Both networks of the underlay of the lab with this number."""
    return (
        ipaddress.IPv4Network(f"10.77.{number}.0/24"),
        ipaddress.IPv6Network(f"fd77:0:0:{number:x}::/64"),
    )


def parse_plan(inventory: Mapping[str, Any], *, lab: str, number: int) -> Plan:
    """Compute the plan of a lab from its inventory.

    Raises InventoryError naming the host and the variable when the description is wrong.
    """
    names.check_lab_name(lab)
    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for host, variables, path in _walk(inventory, ()):
        known_variables, groups = found.setdefault(host, ({}, []))
        known_variables.update(variables)
        groups.extend(group for group in path if group not in groups)
    if not found:
        raise InventoryError(f"lab {lab!r}: the inventory lists no host; add one below a group")
    nodes = tuple(
        _parse_node(host, variables, tuple(groups), lab=lab, number=number)
        for host, (variables, groups) in sorted(found.items(), key=lambda item: item[0])
    )
    _check_unique(nodes)
    return Plan(name=lab, number=number, nodes=nodes)


def _walk(
    groups: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, ...]]]:
    """Yield every mention of a host with its variables and the groups leading to it."""
    for group, content in groups.items():
        if content is None:
            continue
        if not isinstance(content, Mapping):
            raise InventoryError(f"group {group!r}: must be a mapping with hosts or children")
        here = (*path, group)
        for host, variables in (content.get("hosts") or {}).items():
            yield host, variables or {}, here
        yield from _walk(content.get("children") or {}, here)


def _parse_node(
    host: str, variables: Mapping[str, Any], groups: tuple[str, ...], *, lab: str, number: int
) -> Node:
    names.check_node_name(host)
    index = variables.get("lab_index")
    if isinstance(index, bool) or not isinstance(index, int) or not 2 <= index <= 250:
        raise InventoryError(f"host {host!r}: lab_index is {index!r}; give a number from 2 to 250")
    image = variables.get("lab_image", IMAGES[0])
    if image not in IMAGES:
        raise InventoryError(f"host {host!r}: lab_image is {image!r}; give one of {IMAGES}")
    routes = variables.get("lab_routes", [])
    if not isinstance(routes, list):
        raise InventoryError(f"host {host!r}: lab_routes is {routes!r}; give a list of networks")
    return Node(
        lab=lab,
        number=number,
        name=host,
        index=index,
        image=image,
        groups=groups,
        routes=tuple(_parse_route(host, route) for route in routes),
    )


def _parse_route(host: str, text: object) -> str:
    try:
        return str(ipaddress.ip_network(str(text)))
    except ValueError as error:
        raise InventoryError(
            f"host {host!r}: lab_routes holds {text!r}, which is no network: {error}"
        ) from error


def _check_unique(nodes: tuple[Node, ...]) -> None:
    """Two hosts must not share an index or a route."""
    owners: dict[str, str] = {}
    for node in nodes:
        for what in (f"lab_index {node.index}", *(f"route {route}" for route in node.routes)):
            other = owners.setdefault(what, node.name)
            if other != node.name:
                raise InventoryError(
                    f"hosts {other!r} and {node.name!r} both have {what}; change one of them"
                )
