"""The lab's network: a fabric in a namespace of its own, a link to the host, one per node.

The fabric holds a bridge, which is also the nodes' router (``.1``). It has no route out, so
nothing a node sends can leave the host. Removing the fabric's namespace removes every link.

Duplicate address detection is off everywhere: addresses are unique by plan, and waiting for
it costs two seconds on each fresh link.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from lab.driver import host, names
from lab.driver.errors import NetworkError
from lab.driver.plan import HOST_INDEX, ROUTER_INDEX, Node, Plan, underlay_v4, underlay_v6

if TYPE_CHECKING:
    from collections.abc import Iterator

NETNS_DIR = Path("/run/netns")
MADE_NETNS_DIR = names.RUN_ROOT / "made-netns-dir"
"""Exists when a lab's first namespace brought the directory above into being."""
UPLINK = "mm-host"
"""The fabric's end of the host's link."""
_NODAD = 0x02  # IFA_F_NODAD, linux/if_addr.h
_LINK_UP_SECONDS = 3.0
_ROUTER_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # The router forwards out of the link a packet came in by; a redirect would be noise.
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
}
_NO_DAD_SYSCTLS = {
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
}


def exists(name: str) -> bool:
    """Whether there is a network namespace of that name."""
    return (NETNS_DIR / name).exists()


def wire_fabric(plan: Plan) -> None:
    """Create the fabric's namespace, its bridge and the host's link, unless they are there."""
    if exists(plan.fabric) and _host_link_is_up(plan):
        return
    remove_fabric(plan)
    _create_namespace(plan.fabric, {**_NO_DAD_SYSCTLS, **_ROUTER_SYSCTLS})
    with _errors(f"fabric of lab {plan.name!r}"), IPRoute(netns=plan.fabric) as fabric:
        fabric.link("set", index=1, state="up")
        mac = f"02:6d:6d:{plan.number:02x}:00:{ROUTER_INDEX:02x}"
        fabric.link("add", ifname=names.BRIDGE, kind="bridge", br_stp_state=0, address=mac)
        bridge = _index(fabric, names.BRIDGE)
        _address(fabric, bridge, plan.number, ROUTER_INDEX)
        fabric.link("set", index=bridge, state="up")
        with _namespace_fd(plan.fabric) as fd:
            _wire_host(plan, fd)
        fabric.link("set", index=_index(fabric, UPLINK), master=bridge, state="up")


def _wire_host(plan: Plan, fabric_fd: int) -> None:
    mac = f"02:6d:6d:{plan.number:02x}:00:{HOST_INDEX:02x}"
    with IPRoute() as here:
        here.link(
            "add",
            ifname=plan.host_link,
            kind="veth",
            address=mac,
            peer={"ifname": UPLINK, "net_ns_fd": fabric_fd},
        )
        index = _index(here, plan.host_link)
        # The alias tells whose link this is when the lab's state is lost.
        here.link("set", index=index, ifalias=names.object_name(plan.name, names.FABRIC_PART))
        Path(f"/proc/sys/net/ipv6/conf/{plan.host_link}/accept_dad").write_text("0")
        _address(here, index, plan.number, HOST_INDEX)
        here.link("set", index=index, state="up")


def wire_node(plan: Plan, node: Node) -> None:
    """Give a node a fresh namespace with eth0 on the bridge; what was there before goes away."""
    unwire_node(plan, node)
    _create_namespace(node.object_name, _NO_DAD_SYSCTLS)
    with _errors(f"node {node.name!r}"), IPRoute(netns=plan.fabric) as fabric:
        with _namespace_fd(node.object_name) as fd:
            peer = {"ifname": "eth0", "net_ns_fd": fd, "address": node.mac}
            fabric.link("add", ifname=node.link, kind="veth", peer=peer)
        link = _index(fabric, node.link)
        fabric.link("set", index=link, master=_index(fabric, names.BRIDGE), state="up")
        _wire_inside(node)
        fabric.poll(fabric.link, "dump", ifname=node.link, operstate="UP", timeout=_LINK_UP_SECONDS)
    route_nodes(plan)


def route_nodes(plan: Plan) -> None:
    """Make the fabric's router send every node's networks to it."""
    with _errors(f"routes of lab {plan.name!r}"), IPRoute(netns=plan.fabric) as fabric:
        for node in plan.nodes:
            for route in node.routes:
                v4 = ipaddress.ip_network(route).version == 4
                fabric.route(
                    "replace",
                    family=socket.AF_INET if v4 else socket.AF_INET6,
                    dst=route,
                    gateway=node.address_v4 if v4 else node.address_v6,
                )


def _wire_inside(node: Node) -> None:
    with IPRoute(netns=node.object_name) as inside:
        inside.link("set", index=1, state="up")
        eth0 = _index(inside, "eth0")
        _address(inside, eth0, node.number, node.index)
        inside.link("set", index=eth0, state="up")
        inside.route("add", dst="default", gateway=underlay_v4(node.number, ROUTER_INDEX))
        inside.route(
            "add",
            family=socket.AF_INET6,
            dst="default",
            gateway=underlay_v6(node.number, ROUTER_INDEX),
        )


def unwire_node(plan: Plan, node: Node) -> None:
    """Remove a node's namespace and its link. The link goes by hand: a process that still
    holds the namespace would otherwise keep the name taken."""
    if exists(plan.fabric):
        with _errors(f"node {node.name!r}"), IPRoute(netns=plan.fabric) as fabric:
            for index in fabric.link_lookup(ifname=node.link):
                fabric.link("del", index=index)
    remove_namespace(node.object_name)


def remove_namespace(name: str) -> None:
    """Remove a namespace, or what is left of one that was never finished."""
    path = NETNS_DIR / name
    host.unmount_below(path)
    path.unlink(missing_ok=True)


def remove_fabric(plan: Plan) -> None:
    """Remove the fabric and the host's link."""
    remove_host_links([plan.host_link])
    remove_namespace(plan.fabric)


def remove_host_links(links: list[str]) -> None:
    """Remove links of the host; one that has gone meanwhile is fine."""
    with IPRoute() as here:
        for name in links:
            for index in here.link_lookup(ifname=name):
                with _errors(f"link {name!r}"):
                    here.link("del", index=index)


def host_links() -> dict[str, str]:
    """Links of the host that belong to labs, with their owner."""
    found = {}
    with IPRoute() as here:
        for link in here.get_links():
            lab = names.owner(link.get("ifalias") or "")
            if lab is not None:
                found[str(link.get("ifname"))] = lab
    return found


def namespaces() -> list[str]:
    """Network namespaces that belong to labs."""
    if not NETNS_DIR.is_dir():
        return []
    return sorted(path.name for path in NETNS_DIR.iterdir() if names.owner(path.name))


def occupied_networks(own_link: str) -> list[tuple[str, str]]:
    """Networks the host already reaches by another link: (network, link)."""
    taken = []
    with IPRoute() as here:
        links = {link["index"]: str(link.get("ifname")) for link in here.get_links()}
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in here.get_routes(family=family):
                destination, oif = route.get("dst"), route.get("oif")
                link = links.get(oif, "?")
                if destination and link != own_link:
                    taken.append((f"{destination}/{route['dst_len']}", link))
    return taken


def _host_link_is_up(plan: Plan) -> bool:
    with IPRoute() as here:
        return bool(here.link_lookup(ifname=plan.host_link, operstate="UP"))


def _create_namespace(name: str, sysctls: dict[str, str]) -> None:
    if not NETNS_DIR.is_mount():
        names.RUN_ROOT.mkdir(parents=True, exist_ok=True)
        MADE_NETNS_DIR.touch()
    netns.create(name)

    def write() -> None:
        for key, value in sysctls.items():
            Path("/proc/sys", key).write_text(value)

    host.in_netns(name, write)


def _address(route: IPRoute, link: int, number: int, index: int) -> None:
    route.addr("add", index=link, address=underlay_v4(number, index), prefixlen=24)
    route.addr("add", index=link, address=underlay_v6(number, index), prefixlen=64, flags=_NODAD)


def _index(route: IPRoute, ifname: str) -> int:
    found = route.link_lookup(ifname=ifname)
    if not found:
        raise NetworkError(f"link {ifname!r} is not there; take the lab down and up again")
    return int(found[0])


@contextlib.contextmanager
def _namespace_fd(name: str) -> Iterator[int]:
    fd = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn the kernel's refusal into an error that says what was being wired."""
    try:
        yield
    except NetlinkError as error:
        raise NetworkError(f"{what}: the kernel refused the wiring: {error}") from error
