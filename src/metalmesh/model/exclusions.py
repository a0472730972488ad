"""What capture leaves alone: ports of the workload, ports and networks of others (TCP).

Like Istio's ``traffic.sidecar.istio.io/exclude…`` annotations, which ambient mode does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import collapse_addresses, ip_network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.workload import IPAddress

#: first and last port
PortRange = tuple[int, int]
_PORT_MAX: Final = 65535


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusions:
    """Ranges are sorted and do not overlap; nor do networks."""

    inbound_ports: tuple[PortRange, ...] = ()
    outbound_ports: tuple[PortRange, ...] = ()
    outbound_cidrs: tuple[IPNetwork, ...] = ()

    def __or__(self, other: Exclusions) -> Exclusions:
        """Everything that either leaves alone."""
        return Exclusions(
            inbound_ports=merge_ports((*self.inbound_ports, *other.inbound_ports)),
            outbound_ports=merge_ports((*self.outbound_ports, *other.outbound_ports)),
            outbound_cidrs=_merge_networks((*self.outbound_cidrs, *other.outbound_cidrs)),
        )

    def excludes_inbound(self, port: int) -> bool:
        """Whether plaintext to this port of the workload reaches the application unseen."""
        return _within(port, self.inbound_ports)

    def excludes_outbound(self, address: IPAddress, port: int) -> bool:
        """Whether a connection of the workload goes out as it is."""
        return _within(port, self.outbound_ports) or any(
            address.version == network.version and address in network
            for network in self.outbound_cidrs
        )


NO_EXCLUSIONS: Final = Exclusions()


def _within(port: int, ranges: Iterable[PortRange]) -> bool:
    return any(low <= port <= high for low, high in ranges)


def parse_ports(text: str) -> tuple[PortRange, ...]:
    """``22, 8000-8100``; ValueError names the part that is wrong."""
    return merge_ports(_range(part) for part in _parts(text))


def _range(part: str) -> PortRange:
    low, dash, high = (item.strip() for item in part.partition("-"))
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise ValueError(f"{part!r} is no port and no range such as 8000-8100")
    found = int(low), int(high or low)
    if not 1 <= found[0] <= found[1] <= _PORT_MAX:
        raise ValueError(f"{part!r} must be within 1 to {_PORT_MAX}, the lower port first")
    return found


def merge_ports(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Sorted, with what touches or overlaps joined."""
    merged: list[PortRange] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def parse_networks(text: str) -> tuple[IPNetwork, ...]:
    """``10.0.0.0/8, 2001:db8::1``; ValueError names the part that is wrong."""
    return _merge_networks(map(ip_network, _parts(text)))


def _merge_networks(networks: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    every = list(networks)
    return tuple(
        network
        for version in (4, 6)
        for network in collapse_addresses(
            [item for item in every if item.version == version]  # type: ignore[type-var]
        )
    )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_exclusions(
    values: Mapping[str, str], inbound_ports: str, outbound_ports: str, outbound_cidrs: str
) -> tuple[Exclusions, dict[str, str]]:
    """Read the values of three keys; the second is key to what is wrong with its value."""
    faults: dict[str, str] = {}

    def ports(key: str) -> tuple[PortRange, ...]:
        try:
            return parse_ports(values.get(key, ""))
        except ValueError as error:
            faults[key] = str(error)
            return ()

    def networks(key: str) -> tuple[IPNetwork, ...]:
        try:
            return parse_networks(values.get(key, ""))
        except ValueError as error:
            faults[key] = str(error)
            return ()

    found = Exclusions(
        inbound_ports=ports(inbound_ports),
        outbound_ports=ports(outbound_ports),
        outbound_cidrs=networks(outbound_cidrs),
    )
    return found, faults
