"""Metrics of main and of the workers in one text (istio-facts 8.1).

Counters live in the workers. Main adds up what they report; what a worker counted before it died
stays in the sum, its gauges go with it.
"""

from __future__ import annotations

import os
import resource
import time
from typing import TYPE_CHECKING, Final

from metalmesh import __version__
from metalmesh.service.metrics import Registry, render_samples

if TYPE_CHECKING:
    from metalmesh.service.metrics import Kind
    from metalmesh.ztunnel.main import Ztunnel
    from metalmesh.ztunnel.messages import Labels

Series = tuple[tuple[str, "Labels", float], ...]
_Key = tuple[str, tuple[tuple[str, str], ...]]

HELP: Final = {
    "istio_tcp_connections_opened_total": "The total number of TCP connections opened",
    "istio_tcp_connections_closed_total": "The total number of TCP connections closed",
    "istio_tcp_connections_failed_total": "The total number of TCP connections that failed",
    "istio_tcp_received_bytes_total": "The size of total bytes received during request",
    "istio_tcp_sent_bytes_total": "The size of total bytes sent during response",
    "istio_crl_policy_rejections_total": "The total number of connections refused by a CRL",
    "istio_tcp_sockets_open": "The number of TCP sockets open now",
    "metalmesh_outbound_retries_total": "Connections that went on to another endpoint",
    "metalmesh_outbound_ejections_total": "Endpoints left out because they kept failing",
    "metalmesh_outbound_ejected_endpoints": "Endpoints left out now, per client and worker",
}


class WorkerSeries:
    """What the workers have counted, summed."""

    def __init__(self) -> None:
        self._live: dict[int, Series] = {}
        self._finished: dict[_Key, float] = {}

    def report(self, worker: int, series: Series) -> None:
        """The present values of a worker (its pid)."""
        self._live[worker] = series

    def finish(self, worker: int) -> None:
        """A worker is gone: keep its counters, drop its gauges."""
        for name, labels, value in self._live.pop(worker, ()):
            if name.endswith("_total"):
                key = (name, tuple(labels.items()))
                self._finished[key] = self._finished.get(key, 0) + value

    def total(self) -> dict[_Key, float]:
        """Sums by name and labels."""
        total = dict(self._finished)
        for series in self._live.values():
            for name, labels, value in series:
                key = (name, tuple(labels.items()))
                total[key] = total.get(key, 0) + value
        return total

    def render(self, *, openmetrics: bool) -> str:
        """The text of every series."""
        by_name: dict[str, list[tuple[tuple[tuple[str, str], ...], float]]] = {
            name: [] for name in HELP
        }
        for (name, labels), value in sorted(self.total().items()):
            by_name.setdefault(name, []).append((labels, value))
        lines: list[str] = []
        for name, samples in by_name.items():
            kind: Kind = "counter" if name.endswith("_total") else "gauge"
            text = HELP.get(name, "Reported by the data workers")
            lines += render_samples(kind, name, text, samples, openmetrics=openmetrics)
        return "\n".join([*lines, ""])


class MainMetrics:
    """What main itself counts."""

    def __init__(self, registry: Registry) -> None:
        build = registry.gauge("istio_build", "Istio component build info", ("component", "tag"))
        build.set(1, ("ztunnel", __version__))
        self.active = registry.gauge(
            "workload_manager_active_proxy_count", "Workloads that are served now"
        )
        self.pending = registry.gauge(
            "workload_manager_pending_proxy_count", "Workloads that could not be started yet"
        )
        self.started = registry.counter(
            "workload_manager_proxies_started_total", "Workloads whose serving was started"
        )
        self.stopped = registry.counter(
            "workload_manager_proxies_stopped_total", "Workloads whose serving was stopped"
        )
        self.expiry = registry.gauge(
            "metalmesh_svid_expiry_seconds",
            "Seconds until the certificate of an identity expires",
            ("identity",),
        )
        self.restarts = registry.counter(
            "metalmesh_ztunnel_worker_restarts_total", "Data workers that had to be replaced"
        )
        self._open_fds = registry.gauge("process_open_fds", "Number of open file descriptors")
        self._max_fds = registry.gauge("process_max_fds", "Maximum number of open file descriptors")
        registry.before_scrape(self._refresh)

    def _refresh(self) -> None:
        self._open_fds.set(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - a count only
        self._max_fds.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def refresh(self, ztunnel: Ztunnel) -> None:
        """Bring computed gauges up to date before a scrape."""
        now = time.time()
        schedule = ztunnel.certificates.schedule
        self.restarts.set(ztunnel.pool.restarts)
        self.pending.set(len(ztunnel.zds.pending))
        self.expiry.clear()
        for identity in schedule.identities():
            svid = schedule.held(identity, now)
            if svid is not None:
                self.expiry.set(round(svid.not_after - now), (identity,))
