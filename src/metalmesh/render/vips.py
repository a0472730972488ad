"""Virtual addresses for services that do not name one, as an API server would allocate them.

An address stays with its service for as long as the service exists. New ones start at a place
given by the service's name, so that even without memory most services get the same again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.workload import IPAddress

#: the first addresses are left to people who choose by hand (Kubernetes, KEP-3070)
RESERVED: Final = 256
#: how far the place for a name is spread within a range, also within a huge IPv6 one
_SPREAD: Final = 2**20


def allocate(
    keys: Iterable[str],
    cidrs: Iterable[IPNetwork],
    taken: Iterable[IPAddress],
    previous: Mapping[str, tuple[IPAddress, ...]],
) -> dict[str, tuple[IPAddress, ...]]:
    """One address per range for every key (``namespace/name``); none where a range is full."""
    ranges = list(cidrs)
    used = set(taken)
    wanted = sorted(set(keys))
    result: dict[str, list[IPAddress]] = {}
    for key in wanted:
        kept = [
            address
            for address in previous.get(key, ())
            if address not in used and any(_within(address, cidr) for cidr in ranges)
        ]
        used.update(kept)
        result[key] = kept
    for key in wanted:
        for cidr in ranges:
            if any(_within(address, cidr) for address in result[key]):
                continue
            address = _free(key, cidr, used)
            if address is not None:
                used.add(address)
                result[key].append(address)
    return {key: tuple(addresses) for key, addresses in result.items()}


def _within(address: IPAddress, cidr: IPNetwork) -> bool:
    return address.version == cidr.version and address in cidr


def _free(key: str, cidr: IPNetwork, used: set[IPAddress]) -> IPAddress | None:
    """The first free address from the key's place on, around once."""
    usable = min(cidr.num_addresses, _SPREAD) - 1  # never the last, a broadcast address
    first = RESERVED if usable > 2 * RESERVED else 1
    count = usable - first
    if count <= 0:
        return None
    digest = hashlib.sha256(key.encode()).digest()
    start = int.from_bytes(digest[:8], "big") % count
    for step in range(count):
        address = cidr[first + (start + step) % count]
        if address not in used:
            return address
    return None
