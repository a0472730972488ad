"""The nft texts under ``tests/golden/nft``: file name -> what renders it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

from metalmesh.model.exclusions import Exclusions
from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from metalmesh.render.network_policy import BoundWorkload, render_network_policy
from metalmesh.render.probes import render_probes
from metalmesh.render.redirection import (
    HostScope,
    RedirectionConfig,
    render_redirection,
    render_redirection_removal,
)
from metalmesh.render.services import Target, VirtualPort, render_services

if TYPE_CHECKING:
    from collections.abc import Callable

A4, A6 = ip_address("10.244.1.10"), ip_address("fd44:1::10")
B4 = ip_address("10.244.1.11")
WORKLOADS: Final = (
    BoundWorkload(uid="K/a", link="mmw0000000a", addresses=(A4, A6)),
    BoundWorkload(uid="K/b", link="mmw0000000b", addresses=(B4,)),
)
UNKNOWN: Final = BoundWorkload(uid="K/c", link="mmw0000000c", addresses=(), known=False)


def _policy(name: str, **fields: Any) -> CompiledNetworkPolicy:
    return CompiledNetworkPolicy(
        name=name,
        namespace="demo",
        selected=(SelectedWorkload("K/a", (A4, A6)), SelectedWorkload("K/b", (B4,))),
        ingress="ingress_rules" in fields,
        egress="egress_rules" in fields,
        **fields,
    )


def _tcp(*ports: int) -> tuple[PolicyPort, ...]:
    return tuple(PolicyPort(Protocol.TCP, port) for port in ports)


POLICIES: Final = (
    _policy("deny-all", ingress_rules=(), egress_rules=()),
    _policy(
        "mixed",
        ingress_rules=(
            PolicyRule(
                peers=(Peer(ip_network("10.0.0.0/8"), (ip_network("10.64.0.0/10"),)),),
                ports=(
                    *_tcp(80, 81, 443),
                    PolicyPort(Protocol.UDP),
                    PolicyPort(Protocol.TCP, 8, 9),
                ),
            ),
            PolicyRule(ports=_tcp(15008)),
            PolicyRule(peers=(), ports=_tcp(1)),
            PolicyRule(peers=(Peer(ip_network("fd44::/16")),), only_uids=frozenset({"K/a"})),
            PolicyRule(),
        ),
        egress_rules=(PolicyRule(peers=(Peer(ip_network("0.0.0.0/0")),)),),
    ),
)
PORTS: Final = (
    VirtualPort(
        "demo/echo.demo.svc.cluster.local",
        ip_address("10.96.0.10"),
        80,
        (Target(A4, 8080), Target(B4, 8081, 3)),
    ),
    VirtualPort("demo/echo", ip_address("fd10::10"), 80, (Target(A6, 8080),)),
    VirtualPort("demo/empty", ip_address("10.96.0.11"), 80, ()),
    VirtualPort("demo/outside", ip_address("192.0.2.7"), 443, (Target(A4, 443),)),
)
RANGES: Final = (ip_network("10.96.0.0/16"),)


EXCLUSIONS: Final = Exclusions(
    inbound_ports=((22, 22), (9000, 9100)),
    outbound_ports=((25, 25),),
    outbound_cidrs=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
)
HOST: Final = HostScope(
    addresses=(ip_address("10.77.0.21"), ip_address("fd77::21")), proxy_group=990
)


def _redirection(**options: Any) -> Callable[[], str]:
    return lambda: render_redirection(RedirectionConfig(**options))


CASES: Final[dict[str, Callable[[], str]]] = {
    "redirection-default.nft": _redirection(),
    "redirection-ipv4-only.nft": _redirection(ipv6=False),
    "redirection-dns-capture.nft": _redirection(dns_capture=True),
    "redirection-dns-capture-ipv4-only.nft": _redirection(dns_capture=True, ipv6=False),
    "redirection-bypass-inbound.nft": _redirection(bypass_inbound=True),
    "redirection-virtual-interfaces.nft": _redirection(virtual_interfaces=("tap0", "docker0")),
    "redirection-exclusions.nft": _redirection(exclusions=EXCLUSIONS),
    "redirection-host.nft": _redirection(exclusions=EXCLUSIONS, host=HOST),
    "redirection-host-ipv4-only.nft": _redirection(host=HOST, ipv6=False),
    "redirection-removal.nft": render_redirection_removal,
    "redirection-host-removal.nft": lambda: render_redirection_removal(host=True),
    "policy-none-received.nft": lambda: render_network_policy(WORKLOADS, None),
    "policy-none.nft": lambda: render_network_policy(WORKLOADS, ()),
    "policy-mixed.nft": lambda: render_network_policy((*WORKLOADS, UNKNOWN), POLICIES),
    "policy-no-workloads.nft": lambda: render_network_policy((), POLICIES),
    "services-none.nft": lambda: render_services((), RANGES, ()),
    "services.nft": lambda: render_services(PORTS, RANGES, (A4, A6)),
    "probes-none.nft": lambda: render_probes({}, 0),
    "probes.nft": lambda: render_probes({A4: "K/a", A6: "K/a", B4: "K/b"}, 0),
}
