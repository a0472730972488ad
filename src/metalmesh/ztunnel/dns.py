"""The DNS proxy: captured queries of each workload, on loopback of its namespace (istio-facts 7).

What is a service of the mesh is answered from the mesh state; the rest goes to the nameservers,
through sockets of the workload's own namespace and under the proxy's mark. It runs in the main
process: names are looked up once per connection at most, and no byte of a connection passes here.
"""

from __future__ import annotations

import logging
import random
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.constants import MARK_FROM_PROXY
from metalmesh.dns.message import Answer, RecordType, ResponseCode
from metalmesh.dns.resolve import Client, ServiceNames
from metalmesh.net.netns import in_netns
from metalmesh.net.sockets import SO_MARK
from metalmesh.routing.endpoints import usable_endpoints
from metalmesh.service.dns import DnsServer, Upstreams
from metalmesh.service.logs import Log
from metalmesh.ztunnel.view import find_local

if TYPE_CHECKING:
    from metalmesh.dns.message import Query
    from metalmesh.service.metrics import Registry
    from metalmesh.ztunnel.config import ZtunnelConfig
    from metalmesh.ztunnel.locals import LocalWorkload
    from metalmesh.ztunnel.mesh import MeshView

#: how long queries under way may go on when this process leaves
FINISH_SECONDS: Final = 2.0
_LABELS: Final = (
    "request_query_type",
    "request_protocol",
    "source_canonical_service",
    "source_canonical_revision",
)
_BUCKETS: Final = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)
#: types told apart in metrics; clients may send any number
_TYPES: Final = {2: "NS", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 65: "HTTPS", 255: "ANY"} | {
    int(kind): kind.name for kind in RecordType
}

log = Log("dns")


class DnsMetrics:
    """Istio's counters of DNS (istio-facts 8.1)."""

    def __init__(self, registry: Registry) -> None:
        self.requests = registry.counter(
            "istio_dns_requests_total", "Total number of DNS requests", _LABELS
        )
        self.upstream_requests = registry.counter(
            "istio_dns_upstream_requests_total",
            "Total number of DNS requests forwarded to upstream",
            _LABELS,
        )
        self.upstream_failures = registry.counter(
            "istio_dns_upstream_failures_total",
            "Total number of DNS requests that failed to be forwarded",
            _LABELS,
        )
        self.upstream_seconds = registry.histogram(
            "istio_dns_upstream_request_duration_seconds",
            "Total time in seconds Istio takes to get DNS response from upstream",
            _BUCKETS,
            _LABELS,
        )


class DnsProxy:
    """One server for each workload, and what they share."""

    def __init__(self, config: ZtunnelConfig, mesh: MeshView, registry: Registry) -> None:
        self._config = config
        self.mesh = mesh
        self.metrics = DnsMetrics(registry)
        self._upstreams = Upstreams(config.dns_upstreams, Path(config.resolv_conf), _is_loopback)
        self._servers: dict[str, DnsServer] = {}
        self._names: ServiceNames | None = None
        self._names_version = -1

    async def serve(self, local: LocalWorkload) -> None:
        """Answer the queries of a workload."""
        site = _Site(self, local)
        server = DnsServer(site, self._upstreams, site.make_socket)
        self._servers[local.info.uid] = server
        sockets = [sock.dup() for sock in local.dns_sockets]
        await server.listen(
            [sock for sock in sockets if sock.type == socket.SOCK_DGRAM],
            [sock for sock in sockets if sock.type == socket.SOCK_STREAM],
        )

    def stop(self, uid: str) -> None:
        """Answer no more queries of a workload."""
        server = self._servers.pop(uid, None)
        if server is not None:
            server.close()

    async def finish(self) -> None:
        """Leave new queries to the next process; let those under way end."""
        servers, self._servers = list(self._servers.values()), {}
        for server in servers:
            server.stop_reading()
        for server in servers:
            await server.finish(FINISH_SECONDS)
            server.close()

    def names(self) -> ServiceNames:
        """The services by name, as they are now."""
        version = self.mesh.address_version
        if self._names is None or version != self._names_version:
            services = self.mesh.state.services.values()
            self._names_version = version
            # what is no service may be known to the nameservers, also in the cluster's domain
            self._names = ServiceNames(services, self._config.cluster_domain, authority=False)
        return self._names


class _Site:
    """The proxy of one workload."""

    def __init__(self, proxy: DnsProxy, local: LocalWorkload) -> None:
        self._proxy = proxy
        self._local = local

    def make_socket(self, upstream: str, kind: int) -> socket.socket:
        """A marked socket in the workload's namespace."""
        family = socket.AF_INET6 if ":" in upstream else socket.AF_INET
        with in_netns(self._local.netns_fd):
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK_FROM_PROXY)
        return sock

    def resolve(self, query: Query, peer: str) -> Answer | None:
        """Answer from the mesh; a workload the control plane has not told us of has to wait."""
        del peer  # loopback: the namespace tells who asks
        state = self._proxy.mesh.state
        workload = find_local(state, self._local.info)
        if workload is None:
            return Answer(ResponseCode.SERVFAIL)
        client = Client(workload.namespace, workload.network)
        answer = self._proxy.names().answer(
            query, client, lambda service: usable_endpoints(state, service), random.shuffle
        )
        self._log(query, answer)
        return answer

    def _log(self, query: Query, answer: Answer | None) -> None:
        if log.logger.isEnabledFor(logging.DEBUG):
            found = answer.addresses if answer else ()
            fields = {
                "src.workload": self._local.info.name,
                "src.namespace": self._local.info.namespace,
                "query": _type_name(query),
                "domain": query.name,
                "result": answer.code.name if answer else "forwarded",
                "endpoints": ",".join(map(str, found)),
            }
            log.debug("dns query", fields)

    def on_query(self, query: Query, protocol: str) -> None:
        """Count it."""
        self._proxy.metrics.requests.inc(self._labels(query, protocol))

    def on_result(self, result: str) -> None:
        """Istio counts no results."""

    def on_upstream(self, query: Query, protocol: str, seconds: float, *, failed: bool) -> None:
        """Count it."""
        metrics, labels = self._proxy.metrics, self._labels(query, protocol)
        metrics.upstream_requests.inc(labels)
        if failed:
            metrics.upstream_failures.inc(labels)
        metrics.upstream_seconds.observe(seconds, labels)

    def _labels(self, query: Query, protocol: str) -> tuple[str, ...]:
        labels = dict(self._local.view.labels)
        name = labels.get("canonical_service") or "unknown"
        revision = labels.get("canonical_revision") or "unknown"
        return _type_name(query), protocol, name, revision


def _type_name(query: Query) -> str:
    return _TYPES.get(query.type, "OTHER")


def _is_loopback(address: str) -> bool:
    """Nothing of the machine's listens on loopback of a workload's namespace, but ourselves."""
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return True
