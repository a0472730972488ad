"""Which endpoint a connection tries, and when it goes on to another one.

Nothing an application says is sent before an endpoint has accepted the connection, so whatever
fails before that may be tried elsewhere. A refusal by policy or a wrong identity may not: both
must stay visible, and every endpoint would say the same.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from metalmesh.constants import CONNECT_TIMEOUT_SECONDS
from metalmesh.ztunnel.worker.flow import (
    CONNECT,
    H2_HANDSHAKE_FAILURE,
    NETWORK_POLICY,
    TLS_FAILURE,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metalmesh.routing.outliers import Key
    from metalmesh.ztunnel.messages import Endpoint
    from metalmesh.ztunnel.worker.server import WorkloadServer

#: endpoints one connection tries at most (Istio's HTTP routes: two retries)
MAX_ATTEMPTS: Final = 3
#: an attempt that is not the last gets its part of the connect timeout only; with two lost SYNs
#: (sent again after 1 s and 3 s) an endpoint has still had its chance
ATTEMPT_SECONDS: Final = CONNECT_TIMEOUT_SECONDS / MAX_ATTEMPTS
#: response flags of failures that another endpoint may not share
RETRIABLE: Final = frozenset({CONNECT, TLS_FAILURE, H2_HANDSHAKE_FAILURE, NETWORK_POLICY})
#: answers to a CONNECT that say "not me", as opposed to "not you"
RETRIABLE_STATUSES: Final = frozenset({"502", "503", "504"})


def choose_endpoint(endpoints: Sequence[Endpoint]) -> Endpoint:
    """One endpoint at random, by weight."""
    total = sum(endpoint.weight for endpoint in endpoints)
    if len(endpoints) == 1 or total <= 0:
        return endpoints[0]
    point = int.from_bytes(os.urandom(6), "big") % total
    for endpoint in endpoints:
        point -= endpoint.weight
        if point < 0:
            return endpoint
    return endpoints[-1]


def key_of(endpoint: Endpoint) -> Key:
    """What tells endpoints apart: where it is, and which port behind a tunnel."""
    return endpoint.address, endpoint.authority


def first_endpoint(server: WorkloadServer, endpoints: Sequence[Endpoint]) -> Endpoint:
    """The endpoint to try first: none that is ejected, unless there is no other."""
    if not server.outliers.records or len(endpoints) == 1:
        return choose_endpoint(endpoints)
    return choose_endpoint(_live(server, endpoints))


def _live(server: WorkloadServer, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    now = server.context.loop.now
    outliers = server.outliers
    return [item for item in endpoints if not outliers.ejected(key_of(item), now)] or endpoints


class Attempts:
    """The endpoints that failed one connection; made when the first one does."""

    __slots__ = ("_endpoints", "_give_up_at", "_server", "_tried")

    def __init__(
        self, server: WorkloadServer, endpoints: Sequence[Endpoint], started_at: float
    ) -> None:
        self._server = server
        self._endpoints = endpoints
        self._give_up_at = started_at + CONNECT_TIMEOUT_SECONDS
        self._tried: list[Key] = []

    def failed(self, endpoint: Endpoint, error: str) -> Endpoint | None:
        """Note a failure; the endpoint to try next, if there is one."""
        self._tried.append(key_of(endpoint))
        self._note(endpoint, error)
        context = self._server.context
        if not self.left or context.loop.now >= self._give_up_at:
            return None
        left = [item for item in self._endpoints if key_of(item) not in self._tried]
        context.metrics.retries += 1
        return choose_endpoint(_live(self._server, left))

    @property
    def left(self) -> bool:
        """Whether one more endpoint may be tried."""
        if len(self._tried) >= MAX_ATTEMPTS:
            return False
        return any(key_of(item) not in self._tried for item in self._endpoints)

    @property
    def last(self) -> bool:
        """Whether the attempt under way is the last one."""
        if len(self._tried) + 1 >= MAX_ATTEMPTS:
            return True
        return len({key_of(item) for item in self._endpoints} - set(self._tried)) < 2

    def _note(self, endpoint: Endpoint, error: str) -> None:
        context = self._server.context
        key = key_of(endpoint)
        seconds = self._server.outliers.failed(key, map(key_of, self._endpoints), context.loop.now)
        if not seconds:
            return
        context.metrics.ejections += 1
        fields = [
            ("src.workload", self._server.workload.name, True),
            ("dst.addr", endpoint.address, False),
            ("dst.hbone_addr", endpoint.authority, False),
            ("seconds", f"{seconds:.0f}", False),
            ("error", error, True),
        ]
        shown = [field for field in fields if field[1]]
        context.log.line("warn", "outlier", "endpoint ejected", shown)
