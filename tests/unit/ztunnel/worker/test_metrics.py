"""Counters with Istio's names and labels (istio-facts 8.1)."""

from __future__ import annotations

from metalmesh.ztunnel.messages import ServiceRef
from metalmesh.ztunnel.worker import metrics as mt

SOURCE = mt.Party(
    {
        "workload": "web-1",
        "namespace": "shop",
        "principal": "spiffe://t/ns/shop/sa/web",
        "cluster": "a",
        "app": "web",
        "version": "v1",
        "canonical_service": "web",
        "canonical_revision": "v1",
        "region": "eu",
        "zone": "eu-1",
    }
)
SERVICE = ServiceRef("cart.shop.svc.cluster.local", "cart", "shop")
SIDE = ["workload", "canonical_service", "canonical_revision", "workload_namespace"]
SIDE += ["principal", "app", "version", "cluster"]
ORDER = [
    "reporter",
    *(f"source_{name}" for name in SIDE),
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    *(f"destination_{name}" for name in SIDE),
    "request_protocol",
    "response_flags",
    "connection_security_policy",
]


def test_labels_are_istios_in_istios_order() -> None:
    series = mt.Metrics().series("source", SOURCE, mt.NOBODY, SERVICE, "-", "mutual_tls")
    assert list(series.labels)[: len(ORDER)] == ORDER
    assert series.labels["source_principal"] == "spiffe://t/ns/shop/sa/web"
    assert series.labels["destination_service"] == "cart.shop.svc.cluster.local"
    assert series.labels["destination_workload"] == "unknown"
    assert series.labels["request_protocol"] == "tcp"
    assert series.labels["source_zone"] == "eu-1"
    assert series.labels["destination_region"] == "unknown"


def test_locality_is_absent_when_nobody_is_known() -> None:
    series = mt.Metrics().series("source", mt.NOBODY, mt.NOBODY, None, "-", "unknown")
    assert list(series.labels) == ORDER


def test_equal_labels_share_a_series() -> None:
    """Routes are asked again and again; their labels are equal, not identical."""
    counters = mt.Metrics()
    first = counters.series("source", SOURCE, mt.NOBODY, SERVICE, "-", "mutual_tls")
    again = mt.Party(dict(SOURCE.labels))
    service = ServiceRef(SERVICE.hostname, SERVICE.name, SERVICE.namespace)
    assert counters.series("source", again, mt.NOBODY, service, "-", "mutual_tls") is first
    assert counters.series("source", again, mt.NOBODY, service, "DENY", "mutual_tls") is not first


def test_snapshot_holds_what_was_counted() -> None:
    counters = mt.Metrics()
    series = counters.series("destination", SOURCE, mt.NOBODY, None, "-", "mutual_tls")
    series.opened, series.received = 2, 10
    counters.open_connections["destination"] = 1
    rows = {(name, labels.get("reporter")): value for name, labels, value in counters.snapshot(3)}
    assert rows == {
        ("istio_tcp_connections_opened_total", "destination"): 2,
        ("istio_tcp_received_bytes_total", "destination"): 10,
        ("istio_tcp_sockets_open", "source"): 0,
        ("istio_tcp_sockets_open", "destination"): 1,
        ("metalmesh_access_log_dropped_total", None): 3,
        ("metalmesh_outbound_retries_total", None): 0,
        ("metalmesh_outbound_ejections_total", None): 0,
        ("metalmesh_outbound_ejected_endpoints", None): 0,
    }


def test_peers_cannot_make_series_without_end() -> None:
    """Baggage is the peer's: beyond a bound the labels are dropped, not the counting."""
    counters = mt.Metrics()
    for number in range(6000):
        party = mt.Party({"workload": f"w{number}"})
        counters.series("destination", party, mt.NOBODY, None, "-", "mutual_tls").opened += 1
    rows = [row for row in counters.snapshot(0) if row[0] == mt.OPENED]
    assert len(rows) == 5001
    assert sum(value for _, _, value in rows) == 6000
    (rest,) = (value for _, labels, value in rows if labels["source_workload"] == "unknown")
    assert rest == 1000
