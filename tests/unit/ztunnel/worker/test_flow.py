"""One connection in the log and in the counters."""

from __future__ import annotations

import os

import pytest

from metalmesh.ztunnel.messages import ServiceRef
from metalmesh.ztunnel.worker import flow as fl
from metalmesh.ztunnel.worker.logs import LogWriter
from metalmesh.ztunnel.worker.loop import Loop
from metalmesh.ztunnel.worker.metrics import Metrics, Party


@pytest.fixture
def book():
    """A recorder, and a way to read its log."""
    read_end, write_end = os.pipe()
    loop = Loop()
    recorder = fl.Recorder(loop, LogWriter(loop, write_end), Metrics())

    def lines() -> list[str]:
        recorder.log.flush()
        os.set_blocking(read_end, False)
        try:
            return os.read(read_end, 1 << 16).decode().splitlines()
        except BlockingIOError:
            return []

    yield recorder, lines
    os.close(read_end)
    os.close(write_end)


def tunneled(recorder: fl.Recorder, direction: str) -> fl.Flow:
    """A flow with everything known."""
    flow = fl.Flow(recorder, direction, "uid", "10.0.0.1:5")
    flow.dst_addr, flow.hbone_addr, flow.mutual_tls = "10.0.0.2:15008", "10.0.0.2:80", True
    flow.service = ServiceRef("b.ns.svc", "b", "ns")
    flow.source = Party(
        {"name": "a-1", "namespace": "ns", "principal": "spiffe://t/a", "cluster": "c"}
    )
    flow.destination = Party({"canonical_service": "b", "principal": "spiffe://t/b"})
    return flow


def test_complete_line_has_every_field_in_order(book) -> None:
    recorder, lines = book
    flow = tunneled(recorder, fl.OUTBOUND)
    flow.open()
    flow.from_app, flow.to_app = 84, 512
    flow.finish()
    flow.finish("again")
    (line,) = lines()
    assert line.split("\t")[1:4] == ["info", "access", "connection complete"]
    fields, _, duration = line.split("\t")[4].rpartition(" ")
    assert fields == (
        'src.addr=10.0.0.1:5 src.workload="a-1" src.namespace="ns" src.identity="spiffe://t/a" '
        'src.cluster="c" dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:80 '
        'dst.service="b.ns.svc" dst.workload="b" dst.identity="spiffe://t/b" '
        'direction="outbound" bytes_sent=84 bytes_recv=512'
    )
    assert duration.startswith('duration="')


def test_identities_are_shown_with_mutual_tls_only(book) -> None:
    recorder, lines = book
    flow = tunneled(recorder, fl.INBOUND)
    flow.mutual_tls = False
    flow.open()
    flow.finish()
    assert "identity" not in lines()[0]


def test_error_makes_an_error_line_and_a_failed_connection(book) -> None:
    recorder, lines = book
    flow = tunneled(recorder, fl.INBOUND)
    flow.open()
    flow.finish("connection closed due to policy change", fl.DENY)
    (line,) = lines()
    assert "\terror\taccess\t" in line
    assert line.endswith(' error="connection closed due to policy change"')
    counted = {
        (name.removeprefix("istio_tcp_connections_"), labels["response_flags"]): value
        for name, labels, value in recorder.metrics.snapshot(0)
        if "connections" in name
    }
    assert counted == {
        ("opened_total", "-"): 1,
        ("closed_total", "DENY"): 1,
        ("failed_total", "DENY"): 1,
    }


def test_failure_before_opening_is_a_short_warning(book) -> None:
    recorder, lines = book
    flow = fl.Flow(recorder, fl.OUTBOUND, "uid", "10.0.0.1:5")
    flow.original_dst = "10.0.0.9:80"
    flow.finish("no healthy upstream: 10.0.0.9:80", fl.CONNECT)
    (line,) = lines()
    assert line.split("\t")[1:] == [
        "warn",
        "access",
        "connection failed",
        'src.addr=10.0.0.1:5 dst.addr=10.0.0.9:80 direction="outbound" '
        'error="no healthy upstream: 10.0.0.9:80"',
    ]
    assert not recorder.flows


@pytest.mark.parametrize("direction", [fl.OUTBOUND, fl.INBOUND])
def test_received_bytes_are_the_requests_whoever_reports(book, direction: str) -> None:
    """For the source that is the reverse of its log line, as ever in Istio."""
    recorder, _ = book
    flow = tunneled(recorder, direction)
    flow.open()
    client, server = (flow, flow)
    if direction == fl.OUTBOUND:
        client.from_app, server.to_app = 84, 512
    else:
        client.to_app, server.from_app = 84, 512
    flow.report_bytes()
    flow.report_bytes()
    flow.finish()
    sums = {name: value for name, _, value in recorder.metrics.snapshot(0) if "bytes" in name}
    assert sums == {"istio_tcp_received_bytes_total": 84, "istio_tcp_sent_bytes_total": 512}


def test_open_connections_are_counted_by_reporter(book) -> None:
    recorder, _ = book
    flow = tunneled(recorder, fl.OUTBOUND)
    flow.open()
    assert recorder.metrics.open_connections == {"source": 1, "destination": 0}
    flow.finish()
    assert recorder.metrics.open_connections == {"source": 0, "destination": 0}


def test_access_log_can_be_off(book) -> None:
    recorder, lines = book
    recorder.access_log = False
    flow = tunneled(recorder, fl.OUTBOUND)
    flow.open()
    flow.finish("x")
    fl.Flow(recorder, fl.OUTBOUND, "uid", "10.0.0.1:5").finish("early")
    assert lines() == []
