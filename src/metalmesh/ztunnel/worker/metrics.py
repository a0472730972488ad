"""Counters of a data worker, with Istio's names and labels (istio-facts 8.1).

Main sums the workers' counters when it is scraped. One :class:`Series` is one combination of
labels; a connection looks its series up once and then adds to plain attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metalmesh.ztunnel.messages import Labels, ServiceRef
    from metalmesh.ztunnel.worker.logs import Fragment

OPENED: Final = "istio_tcp_connections_opened_total"
CLOSED: Final = "istio_tcp_connections_closed_total"
FAILED: Final = "istio_tcp_connections_failed_total"
RECEIVED: Final = "istio_tcp_received_bytes_total"
SENT: Final = "istio_tcp_sent_bytes_total"
SOCKETS_OPEN: Final = "istio_tcp_sockets_open"
CRL_REJECTIONS: Final = "istio_crl_policy_rejections_total"
LOG_DROPPED: Final = "metalmesh_access_log_dropped_total"
RETRIES: Final = "metalmesh_outbound_retries_total"
EJECTIONS: Final = "metalmesh_outbound_ejections_total"
EJECTED: Final = "metalmesh_outbound_ejected_endpoints"

UNKNOWN: Final = "unknown"
#: combinations of labels kept apart; peers choose some of them (baggage), so there is an end
_MAX_SERIES: Final = 5000

#: metric label suffix -> key of a workload's labels, in Istio's order
_SOURCE: Final = (
    ("workload", "workload"),
    ("canonical_service", "canonical_service"),
    ("canonical_revision", "canonical_revision"),
    ("workload_namespace", "namespace"),
    ("principal", "principal"),
    ("app", "app"),
    ("version", "version"),
    ("cluster", "cluster"),
)


class Party:
    """One side of connections: a workload's labels, ready to be compared quickly."""

    __slots__ = ("fields", "key", "labels")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        #: text and not a tuple, whose hash would be computed for every connection
        self.key = repr(sorted(labels.items()))
        #: log fields made from the labels, kept by :class:`~.flow.Flow`
        self.fields: dict[tuple[str, bool], Fragment] = {}


NOBODY: Final = Party({})


class Series:
    """The counters of one combination of labels."""

    __slots__ = ("closed", "failed", "labels", "opened", "received", "sent")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.opened = 0
        self.closed = 0
        self.failed = 0
        self.received = 0
        self.sent = 0


class Metrics:
    """Every series of this worker."""

    def __init__(self) -> None:
        self._series: dict[tuple[object, ...], Series] = {}
        self.open_connections = {"source": 0, "destination": 0}
        #: connections refused or ended because of a revoked certificate
        self.crl_rejections = {"source": 0, "destination": 0}
        #: connections that went on to another endpoint, and endpoints left out for failing
        self.retries = 0
        self.ejections = 0
        #: how many are left out now; set when asked for
        self.ejected = 0

    def series(
        self,
        reporter: str,
        source: Party,
        destination: Party,
        service: ServiceRef | None,
        flags: str,
        security: str,
    ) -> Series:
        """The series of a connection; made on first use."""
        key = (reporter, source.key, destination.key, service, flags, security)
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= _MAX_SERIES and (source, destination) != (NOBODY, NOBODY):
                return self.series(reporter, NOBODY, NOBODY, None, flags, security)
            labels = common_labels(reporter, source.labels, destination.labels, service)
            labels.update(
                request_protocol="tcp", response_flags=flags, connection_security_policy=security
            )
            _add_locality(labels, source.labels, destination.labels)
            found = self._series[key] = Series(labels)
        return found

    def snapshot(self, log_dropped: int) -> tuple[tuple[str, Labels, float], ...]:
        """``(name, labels, value)`` of everything that is not zero."""
        rows: list[tuple[str, Labels, float]] = []
        for series in self._series.values():
            for name, value in (
                (OPENED, series.opened),
                (CLOSED, series.closed),
                (FAILED, series.failed),
                (RECEIVED, series.received),
                (SENT, series.sent),
            ):
                if value:
                    rows.append((name, series.labels, float(value)))
        rows += (
            (SOCKETS_OPEN, {"reporter": reporter}, float(value))
            for reporter, value in self.open_connections.items()
        )
        rows += (
            (CRL_REJECTIONS, {"reporter": reporter}, float(value))
            for reporter, value in self.crl_rejections.items()
            if value
        )
        rows += (
            (name, {}, float(value))
            for name, value in (
                (RETRIES, self.retries),
                (EJECTIONS, self.ejections),
                (EJECTED, self.ejected),
                (LOG_DROPPED, log_dropped),
            )
        )
        return tuple(rows)


def common_labels(
    reporter: str, source: Labels, destination: Labels, service: ServiceRef | None
) -> Labels:
    """Labels up to ``destination_cluster``, in Istio's order; ``unknown`` where not known."""
    labels = {"reporter": reporter}
    labels.update(_side("source", source))
    labels["destination_service"] = service.hostname if service else UNKNOWN
    labels["destination_service_namespace"] = service.namespace if service else UNKNOWN
    labels["destination_service_name"] = service.name if service else UNKNOWN
    labels.update(_side("destination", destination))
    return labels


def _side(side: str, labels: Labels) -> Iterable[tuple[str, str]]:
    return ((f"{side}_{suffix}", labels.get(key) or UNKNOWN) for suffix, key in _SOURCE)


def _add_locality(labels: Labels, source: Labels, destination: Labels) -> None:
    for side, known in (("source", source), ("destination", destination)):
        if source or destination:
            labels[f"{side}_region"] = known.get("region") or UNKNOWN
            labels[f"{side}_zone"] = known.get("zone") or UNKNOWN
