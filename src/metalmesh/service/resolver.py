"""Names to addresses, as nameservers and /etc/hosts say, remembered for as long as they allow.

Answers that have run out serve on while no nameserver answers (RFC 8767): a name that was good a
minute ago is better than none.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.dns.message import RecordType
from metalmesh.dns.stub import Found, encode_query, encode_question, parse_response, settles
from metalmesh.errors import ProtocolError
from metalmesh.service.dns import PORT, UPSTREAM_SECONDS, ask_tcp, ask_udp, plain_socket
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metalmesh.model.workload import IPAddress
    from metalmesh.service.dns import Upstreams
    from metalmesh.service.metrics import Registry

#: names remembered (ztunnel's own number)
MAX_NAMES: Final = 4096
#: how long "there is no such name" and "nobody answers" are believed
NEGATIVE_SECONDS: Final = 5.0
#: how long an answer serves beyond its time when no nameserver answers
STALE_SECONDS: Final = 3600.0
#: addresses of one name that a connection may try
MAX_ADDRESSES: Final = 3
_HOSTS: Final = Path("/etc/hosts")

log = Log("metalmesh.resolver")


@dataclass(frozen=True, slots=True)
class _Entry:
    addresses: tuple[IPAddress, ...]
    expires_at: float


class Resolver:
    """One cache of names; concurrent questions for one name are one."""

    def __init__(
        self,
        upstreams: Upstreams,
        registry: Registry,
        *,
        hosts: Path = _HOSTS,
        port: int = PORT,
    ) -> None:
        self._upstreams = upstreams
        self._hosts = hosts
        self._port = port
        self._known: dict[str, _Entry] = {}
        self._asking: dict[str, asyncio.Task[tuple[IPAddress, ...]]] = {}
        self._requests = registry.counter(
            "istio_on_demand_dns_total", "Names that connections needed, remembered or not"
        )

    async def resolve(self, name: str, family: int) -> list[IPAddress]:
        """Addresses in random order, those of the IP version ``family`` first; maybe none."""
        self._requests.inc()
        name = name.lower().rstrip(".")
        entry = self._known.get(name)
        if entry is not None and asyncio.get_running_loop().time() < entry.expires_at:
            return _ordered(entry.addresses, family)
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._look_up(name))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        # who waits may be cancelled; the others go on waiting
        return _ordered(await asyncio.shield(task), family)

    async def _look_up(self, name: str) -> tuple[IPAddress, ...]:
        loop = asyncio.get_running_loop()
        addresses = self._without_asking(name)
        if addresses:
            return addresses
        try:
            addresses, ttl = await self._ask_for_both(name)
        except (OSError, ProtocolError) as error:
            log.warning("name not resolved", {"name": name, "error": str(error) or "timed out"})
            old = self._known.get(name)
            kept = old.addresses if old and loop.time() < old.expires_at + STALE_SECONDS else ()
            if old is None or not kept:
                self._remember(name, (), NEGATIVE_SECONDS)
            return kept
        self._remember(name, addresses, ttl if addresses else NEGATIVE_SECONDS)
        return addresses

    def _without_asking(self, name: str) -> tuple[IPAddress, ...]:
        try:
            return (ip_address(name),)
        except ValueError:
            return _in_hosts(self._hosts, name)

    def _remember(self, name: str, addresses: tuple[IPAddress, ...], seconds: float) -> None:
        if name not in self._known and len(self._known) >= MAX_NAMES:
            del self._known[next(iter(self._known))]
        now = asyncio.get_running_loop().time()
        self._known[name] = _Entry(addresses, now + seconds)

    async def _ask_for_both(self, name: str) -> tuple[tuple[IPAddress, ...], int]:
        """Both families at once; one that fails does not take the other's answer away."""
        found = await asyncio.gather(
            *(self._ask(name, kind) for kind in (RecordType.A, RecordType.AAAA)),
            return_exceptions=True,
        )
        good = [item for item in found if isinstance(item, Found)]
        bad = [item for item in found if isinstance(item, BaseException)]
        addresses = tuple(address for item in good for address in item.addresses)
        if bad and not addresses:
            raise bad[0]
        return addresses, min((item.ttl_seconds for item in good if item.addresses), default=0)

    async def _ask(self, name: str, kind: RecordType) -> Found:
        question = encode_question(name, kind)
        failure: Exception = OSError("there is no nameserver to ask")
        for nameserver in self._upstreams.addresses():
            query = encode_query(secrets.randbits(16), question)
            try:
                async with asyncio.timeout(UPSTREAM_SECONDS):
                    reply = await ask_udp(plain_socket, nameserver, query, question, self._port)
                    found = parse_response(reply, kind)
                    if found.truncated:
                        reply = await ask_tcp(plain_socket, nameserver, query, question, self._port)
                        found = parse_response(reply, kind)
            except (OSError, EOFError, ProtocolError) as error:  # TimeoutError is an OSError
                failure = error if str(error) else OSError(f"{nameserver} does not answer")
                continue
            if settles(found):
                return found
            failure = OSError(f"{nameserver} answers with code {found.code}")
        raise failure


def _ordered(addresses: Iterable[IPAddress], family: int) -> list[IPAddress]:
    """Load balancing, no secret: random within the family."""
    shuffled = list(addresses)
    random.shuffle(shuffled)
    return sorted(shuffled, key=lambda address: address.version != family)[:MAX_ADDRESSES]


def _in_hosts(path: Path, name: str) -> tuple[IPAddress, ...]:
    try:
        lines = path.read_text().splitlines()
    except OSError:  # a machine without it has no such names
        return ()
    found = []
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if name in (word.lower() for word in names) and "%" not in address:
            with contextlib.suppress(ValueError):  # nonsense
                found.append(ip_address(address))
    return tuple(dict.fromkeys(found))
