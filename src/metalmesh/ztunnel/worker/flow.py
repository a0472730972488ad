"""One user connection as logs and metrics see it (istio-facts 8.1 and 8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.ztunnel.worker.logs import Fragment
from metalmesh.ztunnel.worker.metrics import NOBODY, Party

if TYPE_CHECKING:
    from metalmesh.ztunnel.messages import ServiceRef
    from metalmesh.ztunnel.worker.logs import Field, LogWriter
    from metalmesh.ztunnel.worker.loop import Loop
    from metalmesh.ztunnel.worker.metrics import Metrics, Series

# response flags
OK: Final = "-"
DENY: Final = "DENY"
CONNECT: Final = "CONNECT"
TLS_FAILURE: Final = "TLS_FAILURE"
H2_HANDSHAKE_FAILURE: Final = "H2_HANDSHAKE_FAILURE"
NETWORK_POLICY: Final = "NETWORK_POLICY"
IDENTITY_ERROR: Final = "IDENTITY_ERROR"
CERT_REVOKED: Final = "CERT_REVOKED"

COMPLETE: Final = "connection complete"
OUTBOUND: Final = "outbound"
INBOUND: Final = "inbound"


class Recorder:
    """Where flows report to: one per worker."""

    __slots__ = ("access_log", "flows", "log", "loop", "metrics")

    def __init__(self, loop: Loop, log: LogWriter, metrics: Metrics) -> None:
        self.loop = loop
        self.log = log
        self.metrics = metrics
        self.access_log = True
        #: open connections, for the admin page and for draining
        self.flows: dict[Flow, int] = {}


class Flow:
    """Facts of one connection; ``open`` counts it, ``finish`` logs it, once."""

    __slots__ = (
        "_counters",
        "_finished",
        "_recorder",
        "_reported",
        "_started",
        "destination",
        "direction",
        "dst_addr",
        "from_app",
        "hbone_addr",
        "mutual_tls",
        "original_dst",
        "reporter",
        "service",
        "source",
        "src_addr",
        "to_app",
        "uid",
    )

    def __init__(self, recorder: Recorder, direction: str, uid: str, src_addr: str) -> None:
        self._recorder = recorder
        self._started = 0.0
        self._finished = False
        self._reported = (0, 0)
        #: the series of a connection without a fault; every connection is one until it ends
        self._counters: Series | None = None
        self.direction = direction
        #: which side of the connection we are
        self.reporter = "source" if direction == OUTBOUND else "destination"
        self.uid = uid
        #: ``ip:port`` each
        self.src_addr = src_addr
        self.dst_addr = ""
        self.original_dst = ""
        #: the CONNECT's authority, "" without a tunnel
        self.hbone_addr = ""
        self.mutual_tls = False
        self.source: Party = NOBODY
        self.destination: Party = NOBODY
        self.service: ServiceRef | None = None
        #: bytes the local application sent and got, whichever side it is
        self.from_app = 0
        self.to_app = 0

    @property
    def sent(self) -> int:
        """Bytes from the client to the server."""
        return self.from_app if self.direction == OUTBOUND else self.to_app

    @property
    def received(self) -> int:
        """Bytes from the server to the client."""
        return self.to_app if self.direction == OUTBOUND else self.from_app

    def open(self) -> None:
        """The connection and both its sides are known: count it."""
        recorder = self._recorder
        self._started = recorder.loop.now
        recorder.flows[self] = 1
        recorder.metrics.open_connections[self.reporter] += 1
        self._counters = self._series(OK)
        self._counters.opened += 1
        if recorder.log.threshold <= 1 and recorder.access_log:
            fields = [*self._fields(), ("direction", self.direction, True)]
            recorder.log.line("debug", "access", "connection opened", fields)

    def give_up_attempt(self, error: str, flags: str) -> None:
        """The destination has not accepted us and another one is tried: count and log it."""
        recorder = self._recorder
        series = self._series(flags)
        series.closed += 1
        series.failed += 1
        if recorder.access_log and recorder.log.wants("warn"):
            fields = [*self._fields(), ("direction", self.direction, True), ("error", error, True)]
            recorder.log.line("warn", "access", "connection attempt failed", fields)

    def begin_attempt(self) -> None:
        """The destination is another one now: count it there."""
        self._counters = self._series(OK)
        self._counters.opened += 1

    def _series(self, flags: str) -> Series:
        security = "mutual_tls" if self.mutual_tls else "unknown"
        return self._recorder.metrics.series(
            self.reporter, self.source, self.destination, self.service, flags, security
        )

    def report_bytes(self) -> None:
        """Add what was copied since the last report to the counters.

        "Received" are the request's bytes whoever reports, as ever in Istio; so for the source
        the metrics are the reverse of its log line.
        """
        series = self._counters
        if series is None:
            return
        sent, received = self.sent, self.received
        series.received += sent - self._reported[0]
        series.sent += received - self._reported[1]
        self._reported = (sent, received)

    def finish(self, error: str = "", flags: str = OK) -> None:
        """The connection is over: count and log it. Later calls change nothing."""
        if self._finished:
            return
        self._finished = True
        recorder = self._recorder
        if recorder.flows.pop(self, 0) == 0:  # never opened
            self._log_early_failure(error)
            return
        recorder.metrics.open_connections[self.reporter] -= 1
        self.report_bytes()
        series = self._counters if flags == OK and self._counters else self._series(flags)
        series.closed += 1
        if flags != OK:
            series.failed += 1
        if recorder.access_log and recorder.log.threshold <= (4 if error else 2):
            milliseconds = int((recorder.loop.current_time() - self._started) * 1000)
            fields = self._fields()
            fields.append(("direction", self.direction, True))
            fields.append(("bytes_sent", str(self.sent), False))
            fields.append(("bytes_recv", str(self.received), False))
            fields.append(("duration", f"{milliseconds}ms", True))
            if error:
                fields.append(("error", error, True))
            recorder.log.line("error" if error else "info", "access", COMPLETE, fields)

    def describe(self) -> dict[str, str]:
        """For the admin page; inbound, the destination is the one inside of the tunnel."""
        inbound = self.direction == INBOUND
        return {
            "uid": self.uid,
            "direction": self.direction,
            "src": self.src_addr,
            "original_dst": "" if inbound else self.original_dst,
            "actual_dst": (inbound and self.hbone_addr) or self.dst_addr,
            "protocol": "HBONE" if self.mutual_tls else "TCP",
        }

    def _log_early_failure(self, error: str) -> None:
        log = self._recorder.log
        if not self._recorder.access_log or not log.wants("warn"):
            return
        fields: list[Field] = [("src.addr", self.src_addr, False)]
        if self.dst_addr or self.original_dst:
            fields.append(("dst.addr", self.dst_addr or self.original_dst, False))
        fields.append(("direction", self.direction, True))
        fields.append(("error", error, True))
        log.line("warn", "access", "connection failed", fields)

    def _fields(self) -> list[Field | Fragment]:
        """Source and destination; what is not known is left out."""
        fields: list[Field | Fragment] = [("src.addr", self.src_addr, False)]
        self._add_party(fields, "src", self.source)
        fields.append(("dst.addr", self.dst_addr, False))
        if self.hbone_addr:
            fields.append(("dst.hbone_addr", self.hbone_addr, False))
        if self.service is not None:
            fields.append(("dst.service", self.service.hostname, True))
        self._add_party(fields, "dst", self.destination)
        return fields

    def _add_party(self, fields: list[Field | Fragment], side: str, party: Party) -> None:
        known = party.fields.get((side, self.mutual_tls))
        if known is None:
            labels = party.labels
            values = (
                ("workload", labels.get("name") or labels.get("canonical_service")),
                ("namespace", labels.get("namespace")),
                ("identity", labels.get("principal") if self.mutual_tls else ""),
                ("cluster", labels.get("cluster")),
            )
            known = Fragment([(f"{side}.{name}", value, True) for name, value in values if value])
            party.fields[side, self.mutual_tls] = known
        if known.fields:
            fields.append(known)
