"""Sums over workers that come and go."""

from __future__ import annotations

from metalmesh.ztunnel.telemetry import WorkerSeries

OPENED = "istio_tcp_connections_opened_total"
OPEN = "istio_tcp_sockets_open"
SOURCE = {"reporter": "source"}


def test_values_of_all_workers_are_added() -> None:
    series = WorkerSeries()
    series.report(1, ((OPENED, SOURCE, 2.0), (OPEN, SOURCE, 1.0)))
    series.report(2, ((OPENED, SOURCE, 3.0),))
    series.report(1, ((OPENED, SOURCE, 4.0), (OPEN, SOURCE, 1.0)))
    assert series.total() == {
        (OPENED, (("reporter", "source"),)): 7.0,
        (OPEN, (("reporter", "source"),)): 1.0,
    }


def test_counters_outlive_their_worker_and_gauges_do_not() -> None:
    series = WorkerSeries()
    series.report(1, ((OPENED, SOURCE, 2.0), (OPEN, SOURCE, 1.0)))
    series.finish(1)
    series.finish(7)
    series.report(2, ((OPENED, SOURCE, 1.0),))
    assert series.total() == {(OPENED, (("reporter", "source"),)): 3.0}


def test_text_has_every_family_even_without_samples() -> None:
    series = WorkerSeries()
    series.report(1, ((OPENED, SOURCE, 2.0), ("own_gauge", {}, 1.0)))
    text = series.render(openmetrics=False)
    assert f'# TYPE {OPENED} counter\n{OPENED}{{reporter="source"}} 2\n' in text
    assert "# TYPE istio_tcp_received_bytes_total counter\n" in text
    assert "# TYPE own_gauge gauge\nown_gauge 1\n" in text
    assert "# TYPE istio_tcp_connections_opened counter\n" in series.render(openmetrics=True)
