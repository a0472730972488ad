"""Names to addresses, by this machine's own resolver, without blocking the event loop."""

from __future__ import annotations

import asyncio
import random
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from metalmesh.service.logs import Log

TIMEOUT_SECONDS: Final = 5.0

log = Log("metalmesh.resolver")


async def resolve_name(name: str, family: int) -> IPv4Address | IPv6Address | None:
    """One address of ``name``, at random; of the IP version ``family`` if it has any."""
    loop = asyncio.get_running_loop()
    try:
        answers = await asyncio.wait_for(
            loop.getaddrinfo(name, None, type=socket.SOCK_STREAM), TIMEOUT_SECONDS
        )
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        log.warning("name not resolved", {"name": name, "error": str(error) or "timed out"})
        return None
    addresses = [ip_address(answer[4][0]) for answer in answers]
    matching = [address for address in addresses if address.version == family]
    return random.choice(matching or addresses)  # noqa: S311 - load balancing, no secret
