"""Links, addresses, routes and rules of one network namespace, by pyroute2.

Synchronous on purpose: the node agent calls it from a thread. What is made here carries
``ROUTE_PROTOCOL``, so that it can be told from everybody else's and be removed again.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import MetalmeshError, NetworkError
from metalmesh.net import pyroute2_light
from metalmesh.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Interface, IPv6Interface

    Interface = IPv4Interface | IPv6Interface
    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

#: rtm_protocol of our routes and rules ("m"; iproute2's registry ends below 100 but for 186..192)
ROUTE_PROTOCOL: Final = 109
MAIN_TABLE: Final = 254
_NODAD: Final = 0x02
_ONLINK: Final = 0x04
_UP: Final = 0x01
_RUNNING: Final = 0x40
_SCOPES: Final = {"universe": 0, "link": 253, "host": 254}
_TYPES: Final = {"unicast": 1, "local": 2, "unreachable": 7}


@dataclass(frozen=True, slots=True)
class Link:
    """A network device."""

    index: int
    name: str
    mac: str
    up: bool
    #: up, and so is the other end: packets pass
    running: bool
    kind: str
    #: index of a veth's other end in its own namespace; 0 when there is none
    peer_index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A route; ``index`` is the device, 0 when the gateway or the kind decides."""

    destination: Network
    index: int = 0
    gateway: Address | None = None
    table: int = MAIN_TABLE
    kind: str = "unicast"
    scope: str = "universe"
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class MarkRule:
    """A policy rule: packets with this mark look into this table."""

    family: int
    priority: int
    mark: int
    mask: int
    table: int


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except MetalmeshError:
        raise
    except Exception as error:
        code = getattr(error, "code", getattr(error, "errno", None))
        if code is None:
            raise
        hint = "run as root with CAP_NET_ADMIN" if code == errno.EPERM else str(error)
        raise NetworkError(f"{what}: the kernel refused ({hint})") from error


@contextmanager
def open_netlink(netns_fd: int | None = None) -> Iterator[Netlink]:
    """Open the kernel's routing socket of a namespace (default: the caller's own)."""
    iproute = pyroute2_light.load("iproute").IPRoute
    if netns_fd is None:
        raw = iproute()
    else:
        with in_netns(netns_fd):
            raw = iproute()
    with raw, _explained("netlink"):
        yield Netlink(raw)


class Netlink:
    """One open routing socket."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def link(self, name: str) -> Link | None:
        """Return the device of this name, if there is one."""
        try:
            found = list(self._raw.get_links(ifname=name))
        except Exception as error:
            if getattr(error, "code", None) == errno.ENODEV:
                return None
            raise
        return _link(found[0]) if found else None

    def links(self) -> list[Link]:
        """Return every device."""
        return [_link(message) for message in self._raw.get_links()]

    def add_veth(self, name: str, mac: str, peer: str, peer_mac: str, peer_netns_fd: int) -> None:
        """Make a veth pair, both ends down, the peer in another namespace."""
        with _explained(f"veth {name}"):
            self._raw.link(
                "add",
                ifname=name,
                kind="veth",
                address=mac,
                peer={"ifname": peer, "address": peer_mac, "net_ns_fd": peer_netns_fd},
            )

    def delete_link(self, index: int) -> None:
        """Remove a device (a veth takes its peer along)."""
        with _explained(f"device {index}"):
            self._raw.link("del", index=index)

    def set_state(self, index: int, *, up: bool) -> None:
        """Bring a device up, or take it down; its routes go with it."""
        with _explained(f"device {index}"):
            self._raw.link("set", index=index, state="up" if up else "down")

    def set_mac(self, index: int, mac: str) -> None:
        """Give a device its hardware address."""
        with _explained(f"device {index}"):
            self._raw.link("set", index=index, address=mac)

    def addresses(self, index: int) -> dict[Interface, int]:
        """Return the addresses of a device with their scopes."""
        return {
            ip_interface(f"{m.get('address')}/{m['prefixlen']}"): int(m["scope"])
            for m in self._raw.get_addr(index=index)
        }

    def add_address(self, index: int, address: Interface, scope: str = "universe") -> None:
        """Add an address; duplicate address detection is off (it delays a new veth by 2 s)."""
        flags = {"flags": _NODAD} if address.version == 6 else {}
        with _explained(f"address {address}"):
            self._raw.addr(
                "replace",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                scope=_SCOPES[scope],
                **flags,
            )

    def delete_address(self, index: int, address: Interface) -> None:
        """Remove an address."""
        with _explained(f"address {address}"):
            self._raw.addr(
                "del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen
            )

    def routes(self, *, table: int = MAIN_TABLE, own: bool = True) -> set[Route]:
        """Return the routes of a table; only ours unless ``own`` is false."""
        found = set()
        for family in (AF_INET, AF_INET6):
            match = {"proto": ROUTE_PROTOCOL} if own else {}
            for message in self._raw.get_routes(family=family, table=table, **match):
                route = _route(message, family)
                if route is not None and route.table == table:
                    found.add(route)
        return found

    def replace_route(self, route: Route) -> None:
        """Add a route, or put it in the place of the one that is there."""
        self._change_route("replace", route)

    def delete_route(self, route: Route) -> None:
        """Remove a route."""
        self._change_route("del", route)

    def _change_route(self, verb: str, route: Route) -> None:
        version = route.destination.version
        options: dict[str, Any] = {
            "family": AF_INET if version == 4 else AF_INET6,
            "dst": str(route.destination),
            "table": route.table,
            "type": route.kind,
            "scope": _SCOPES[route.scope] if version == 4 else 0,
            "proto": ROUTE_PROTOCOL,
        }
        if route.index:
            options["oif"] = route.index
        if route.gateway is not None:
            options["gateway"] = str(route.gateway)
        if route.onlink:
            options["flags"] = _ONLINK
        with _explained(f"route {route.destination}"):
            self._raw.route(verb, **options)

    def mark_rules(self, priority: int) -> set[MarkRule]:
        """Return the rules of this priority, whatever they are."""
        return {
            MarkRule(
                family,
                priority,
                message.get("fwmark") or 0,
                message.get("fwmask") or 0,
                message.get("table") or message["table"],
            )
            for family in (AF_INET, AF_INET6)
            for message in self._raw.get_rules(family=family)
            if message.get("priority") == priority
        }

    def add_mark_rule(self, rule: MarkRule) -> None:
        """Add a policy rule."""
        self._change_rule("add", rule)

    def delete_mark_rule(self, rule: MarkRule) -> None:
        """Remove a policy rule."""
        self._change_rule("del", rule)

    def _change_rule(self, verb: str, rule: MarkRule) -> None:
        with _explained(f"ip rule {rule.priority}"):
            self._raw.rule(
                verb,
                family=rule.family,
                priority=rule.priority,
                fwmark=rule.mark,
                fwmask=rule.mask,
                table=rule.table,
            )


def _link(message: Any) -> Link:
    return Link(
        index=int(message["index"]),
        name=str(message.get("ifname")),
        mac=str(message.get("address") or ""),
        up=bool(message["flags"] & _UP),
        running=bool(message["flags"] & _RUNNING),
        kind=str(message.get(("linkinfo", "kind")) or ""),
        peer_index=int(message.get("link") or 0),
    )


def _route(message: Any, family: int) -> Route | None:
    """Translate a route; None for what cannot be ours (multipath)."""
    kinds = {number: name for name, number in _TYPES.items()}
    scopes = {number: name for name, number in _SCOPES.items()}
    kind = kinds.get(message["type"], str(message["type"]))
    index = message.get("oif") or 0
    if not index and kind != "unreachable":
        return None
    whole = "0.0.0.0/0" if family == AF_INET else "::/0"
    target = message.get("dst")
    gateway = message.get("gateway")
    scope = scopes.get(message["scope"], str(message["scope"]))
    return Route(
        destination=ip_network(f"{target}/{message['dst_len']}" if target else whole),
        # the kernel shows IPv6 ones on loopback
        index=0 if kind == "unreachable" else int(index),
        gateway=ip_address(gateway) if gateway else None,
        table=int(message.get("table") or message["table"]),
        kind=kind,
        scope=scope if family == AF_INET else "universe",
        onlink=bool(message["flags"] & _ONLINK),
    )
