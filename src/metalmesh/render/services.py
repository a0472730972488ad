"""Virtual addresses of services as nft text: table ``inet metalmesh-services``.

For whoever is not captured: the node itself, workloads outside the mesh and clients routed through
the node. A connection to a virtual address and port goes to a random endpoint, by weight; captured
TCP never gets here, its ztunnel chooses. A virtual address without that port, or without an
endpoint, is refused at once instead of leaving by the default route.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metalmesh.constants import TABLE_SERVICES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.workload import IPAddress

_FAMILIES: Final = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))
_MAX_COMMENT: Final = 120
_TRANSPORTS: Final = "{ tcp, udp }"


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One endpoint of a service port; a greater weight gets more connections."""

    address: IPAddress
    port: int
    weight: int = 1


@dataclass(frozen=True, slots=True)
class VirtualPort:
    """One port of a virtual address."""

    #: ``namespace/hostname`` of the service
    service: str
    address: IPAddress
    port: int
    targets: tuple[Target, ...]


def render_services(
    ports: Iterable[VirtualPort], ranges: Sequence[IPNetwork], hairpins: Sequence[IPAddress]
) -> str:
    """Return the transaction for a node.

    ``ranges`` are the networks virtual addresses come from, ``hairpins`` the local addresses that
    may be both client and endpoint of one connection.
    """
    served = sorted(ports, key=lambda item: (item.address.version, item.address, item.port))
    lines = [f"{verb} table inet {TABLE_SERVICES}" for verb in ("add", "delete")]
    lines += [f"table inet {TABLE_SERVICES} {{"]
    for version, _, kind in _FAMILIES:
        lines += _indent(_sets(served, ranges, hairpins, version, kind))
    for item in served:
        if item.targets:
            lines += _indent(_port_chain(item))
    lines += _indent(_dispatch(served))
    lines += _indent(_base_chains())
    return "\n".join([*lines, "}"]) + "\n"


def _sets(
    served: Sequence[VirtualPort],
    ranges: Sequence[IPNetwork],
    hairpins: Sequence[IPAddress],
    version: int,
    kind: str,
) -> list[str]:
    inside = [item for item in ranges if item.version == version]
    outside = {
        item.address
        for item in served
        if item.address.version == version and not _covered(item.address, inside)
    }
    virtual = [str(item) for item in (*inside, *sorted(outside, key=str))]
    own = [f"{item} . {item}" for item in sorted(hairpins, key=str) if item.version == version]
    return [
        *_set(f"virtual-v{version}", kind, virtual, "interval"),
        *_set(f"hairpin-v{version}", f"{kind} . {kind}", own, ""),
    ]


def _covered(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(address in network for network in networks)


def _set(name: str, kind: str, elements: Sequence[str], flags: str) -> list[str]:
    body = [f"type {kind}"]
    if flags:
        body.append(f"flags {flags}")
    if elements:
        body.append("elements = { " + ", ".join(elements) + " }")
    return [f"set {name} {{", *(f"\t{line}" for line in body), "}"]


def _port_chain(item: VirtualPort) -> list[str]:
    keyword = "ip" if item.address.version == 4 else "ip6"
    entries, start = [], 0
    for target in sorted(item.targets):
        end = start + target.weight - 1
        key = str(start) if start == end else f"{start}-{end}"
        entries.append(f"{key} : {target.address} . {target.port}")
        start = end + 1
    text = f"{item.service}:{item.port}"
    short = text if len(text) <= _MAX_COMMENT else f"{text[: _MAX_COMMENT - 3]}..."
    return [
        f"chain {_chain_name(item)} {{",
        f"\tmeta l4proto {_TRANSPORTS} counter dnat {keyword} to numgen random mod {start} map "
        f'{{ {", ".join(entries)} }} comment "{short}"',
        "}",
    ]


def _dispatch(served: Sequence[VirtualPort]) -> list[str]:
    lines = []
    for version, _, kind in _FAMILIES:
        elements = [
            f"{item.address} . {item.port} : goto {_chain_name(item)}"
            for item in served
            if item.targets and item.address.version == version
        ]
        body = [f"\ttype {kind} . inet_service : verdict"]
        if elements:
            body.append("\telements = { " + ", ".join(elements) + " }")
        lines += [f"map ports-v{version} {{", *body, "}"]
    rules = [
        f"meta l4proto {_TRANSPORTS} {keyword} daddr . th dport vmap @ports-v{version}"
        for version, keyword, _ in _FAMILIES
    ]
    return [*lines, "chain dispatch {", *(f"\t{rule}" for rule in rules), "}"]


def _base_chains() -> list[str]:
    lines = []
    for name, hook in (("prerouting", "prerouting"), ("output", "output")):
        lines += _chain(name, f"type nat hook {hook} priority -100", ["jump dispatch"])
    masquerade = [
        f"ct status dnat {keyword} saddr . {keyword} daddr @hairpin-v{version} "
        'counter masquerade comment "to itself by its service"'
        for version, keyword, _ in _FAMILIES
    ]
    lines += _chain("postrouting", "type nat hook postrouting priority 100", masquerade)
    refuse = []
    for version, keyword, _ in _FAMILIES:
        match = f"{keyword} daddr @virtual-v{version}"
        refuse += [
            f'{match} meta l4proto tcp counter reject with tcp reset comment "no endpoint"',
            f'{match} counter reject comment "no endpoint"',
        ]
    for name, hook in (("refuse-forwarded", "forward"), ("refuse-local", "output")):
        lines += _chain(name, f"type filter hook {hook} priority -20", refuse)
    return lines


def _chain(name: str, hook: str, rules: Sequence[str]) -> list[str]:
    head = [f"chain {name} {{", f"\t{hook}; policy accept;"]
    return [*head, *(f"\t{rule}" for rule in rules), "}"]


def _chain_name(item: VirtualPort) -> str:
    key = f"{item.address}:{item.port}"
    return f"service-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"\t{line}" for line in lines]
