"""Health probes of the node as nft text: table ``inet istio-ambient-nat`` of its own namespace.

Istio's host rules (istio-facts 1.6): what the prober's user sends to an enrolled workload gets a
source address that the workload's redirection lets pass, so a probe needs no identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.constants import (
    PROBE_SET_IPV4,
    PROBE_SET_IPV6,
    PROBE_SNAT_IPV4,
    PROBE_SNAT_IPV6,
    TABLE_NAT,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metalmesh.model.workload import IPAddress

_FAMILIES: Final = (
    (4, "ip", "ipv4_addr", PROBE_SET_IPV4, PROBE_SNAT_IPV4),
    (6, "ip6", "ipv6_addr", PROBE_SET_IPV6, PROBE_SNAT_IPV6),
)
_MAX_COMMENT: Final = 120


def render_probes(enrolled: Mapping[IPAddress, str], prober_user: int) -> str:
    """Return the transaction; ``enrolled`` is address -> uid of the workload."""
    lines = [f"{verb} table inet {TABLE_NAT}" for verb in ("add", "delete")]
    lines.append(f"table inet {TABLE_NAT} {{")
    for version, _, kind, name, _ in _FAMILIES:
        elements = [
            f'{address} comment "{enrolled[address][-_MAX_COMMENT:]}"'
            for address in _of_version(enrolled, version)
        ]
        lines += [f"\tset {name} {{", f"\t\ttype {kind}"]
        if elements:
            lines.append("\t\telements = { " + ", ".join(elements) + " }")
        lines.append("\t}")
    lines += ["\tchain postrouting {", "\t\ttype nat hook postrouting priority 100; policy accept;"]
    lines += [
        f"\t\tmeta l4proto tcp meta skuid {prober_user} {keyword} daddr @{name} "
        f'counter snat {keyword} to {source} comment "probes"'
        for _, keyword, _, name, source in _FAMILIES
    ]
    return "\n".join([*lines, "\t}", "}"]) + "\n"


def _of_version(addresses: Iterable[IPAddress], version: int) -> list[IPAddress]:
    return sorted((item for item in addresses if item.version == version), key=str)
