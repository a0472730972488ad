"""Prometheus and OpenMetrics text."""

from __future__ import annotations

import pytest

from metalmesh.service.metrics import Registry, wants_openmetrics


def test_families_are_rendered_in_order_with_escaped_labels() -> None:
    registry = Registry()
    opened = registry.counter("opened_total", "Opened\nconnections", ("reporter", "peer"))
    registry.gauge("active", "Active")
    opened.inc(("source", 'a"b\\c\n'))
    opened.inc(("source", 'a"b\\c\n'), 2)
    assert registry.render() == (
        "# HELP opened_total Opened\\nconnections\n"
        "# TYPE opened_total counter\n"
        'opened_total{reporter="source",peer="a\\"b\\\\c\\n"} 3\n'
        "# HELP active Active\n"
        "# TYPE active gauge\n"
        "active 0\n"
    )


def test_openmetrics_names_the_family_without_total_and_ends() -> None:
    registry = Registry()
    registry.counter("opened_total", "Opened").inc()
    assert registry.render(openmetrics=True, extra="other 1\n") == (
        "# HELP opened Opened\n# TYPE opened counter\nopened_total 1\nother 1\n# EOF\n"
    )


def test_histogram_buckets_are_cumulative() -> None:
    registry = Registry()
    latency = registry.histogram("latency_seconds", "Latency", (1, 0.1), ("kind",))
    for value in (0.05, 0.1, 0.5, 7):
        latency.observe(value, ("udp",))
    assert registry.render().splitlines()[2:] == [
        'latency_seconds_bucket{kind="udp",le="0.1"} 2',
        'latency_seconds_bucket{kind="udp",le="1"} 3',
        'latency_seconds_bucket{kind="udp",le="+Inf"} 4',
        'latency_seconds_sum{kind="udp"} 7.65',
        'latency_seconds_count{kind="udp"} 4',
    ]


def test_hooks_refresh_gauges_before_each_scrape() -> None:
    registry = Registry()
    gauge = registry.gauge("now", "Now")
    registry.before_scrape(lambda: gauge.inc())
    assert registry.render().endswith("now 1\n")
    assert registry.render().endswith("now 2\n")


def test_mistakes_of_ours_are_errors() -> None:
    registry = Registry()
    registry.gauge("a", "A")
    with pytest.raises(ValueError, match="declared twice"):
        registry.gauge("a", "A")
    with pytest.raises(ValueError, match="_total"):
        registry.counter("b", "B")


def test_accept_header_chooses_the_format() -> None:
    assert wants_openmetrics("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert not wants_openmetrics("text/plain")
