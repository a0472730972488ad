"""The node's DNS server: UDP and TCP port 53 of ``dns_address`` (:mod:`metalmesh.service.dns`).

For the node itself, for workloads that are not captured, and behind the ztunnels' own proxies. A
client's namespace follows from its source address; the cluster's domain is this server's own.
"""

from __future__ import annotations

import asyncio
import random
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.dns.resolve import Client, ServiceNames
from metalmesh.routing.endpoints import usable_endpoints
from metalmesh.service.dns import PORT, DnsServer, Upstreams, plain_socket
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from metalmesh.dns.message import Answer, Query
    from metalmesh.node.config import NodeConfig
    from metalmesh.node.enrolment import Enrolment
    from metalmesh.node.mesh import NodeMesh
    from metalmesh.node.metrics import NodeMetrics

_RETRY_SECONDS: Final = 5.0
_BACKLOG: Final = 128
_FALLBACK_RESOLV_CONF: Final = Path("/etc/resolv.conf")

log = Log("metalmesh.node.dns")


class DnsShell:
    """Listens, answers from the mesh's services, forwards the rest."""

    def __init__(
        self, config: NodeConfig, mesh: NodeMesh, enrolment: Enrolment, metrics: NodeMetrics
    ) -> None:
        self._config = config
        self._mesh = mesh
        self._enrolment = enrolment
        self._metrics = metrics
        self._names = ServiceNames((), config.cluster_domain, authority=True)

    def services_changed(self) -> None:
        """Index the services anew."""
        services = self._mesh.state.services.values()
        self._names = ServiceNames(services, self._config.cluster_domain, authority=True)

    async def run(self) -> None:
        """Serve until cancelled; a port that is taken is tried again."""
        self.services_changed()
        upstreams = find_upstreams(self._config)
        address = str(self._config.dns_address)
        while True:
            server = DnsServer(self, upstreams, plain_socket)
            try:
                await server.listen(
                    [_bound(address, socket.SOCK_DGRAM)], [_bound(address, socket.SOCK_STREAM)]
                )
                log.info("listening", {"address": address, "upstreams": upstreams.addresses()})
                await asyncio.Event().wait()
            except OSError as error:
                log.error("DNS cannot listen", {"address": address, "error": str(error)})
                await asyncio.sleep(_RETRY_SECONDS)
            finally:
                server.close()

    # --- what the server asks for ------------------------------------------------------------
    def resolve(self, query: Query, peer: str) -> Answer | None:
        """An answer to a client at this address."""
        namespace = self._enrolment.namespace_of(ip_address(peer))
        state = self._mesh.state
        answer = self._names.answer(
            query,
            Client(namespace, self._config.network),
            lambda service: usable_endpoints(state, service),
            random.shuffle,
        )
        if answer is not None:
            result = answer.code.name
            log.debug("query", {"src.namespace": namespace, "query": query.name, "result": result})
        return answer

    def on_query(self, query: Query, protocol: str) -> None:
        """A query was read."""

    def on_result(self, result: str) -> None:
        """What became of it."""
        self._metrics.dns_queries.inc((result,))

    def on_upstream(self, query: Query, protocol: str, seconds: float, *, failed: bool) -> None:
        """An upstream was asked."""


def _bound(address: str, kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, PORT))
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def find_upstreams(config: NodeConfig) -> Upstreams:
    """Nameservers to forward to: configured ones, else those of a resolv.conf."""
    path = config.resolv_conf if config.resolv_conf.exists() else _FALLBACK_RESOLV_CONF
    return Upstreams(config.dns_upstreams, path, str(config.dns_address).__eq__)
