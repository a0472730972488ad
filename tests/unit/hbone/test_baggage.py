"""What a CONNECT says about its source (istio-facts 2.1)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.hbone import baggage as b

LABELS = {
    "cluster": "site-a",
    "namespace": "shop",
    "workload": "web-1",
    "canonical_service": "web",
    "canonical_revision": "v1",
    "region": "eu",
    "zone": "eu-1",
    "app": "not sent",
}


def test_baggage_has_istios_keys_in_istios_order() -> None:
    assert b.encode_baggage(LABELS) == (
        "k8s.cluster.name=site-a,k8s.namespace.name=shop,k8s.pod.name=web-1,service.name=web,"
        "service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1"
    )


def test_unknown_labels_are_left_out() -> None:
    assert b.encode_baggage({}) == ""
    assert b.encode_baggage({"namespace": "", "cluster": "x"}) == "k8s.cluster.name=x"


def test_what_was_encoded_is_parsed_back() -> None:
    assert b.parse_baggage(b.encode_baggage(LABELS)) == {
        key: value for key, value in LABELS.items() if key != "app"
    }


@pytest.mark.parametrize("kind", ["deployment", "pod", "job", "cronjob"])
def test_every_workload_type_is_understood(kind: str) -> None:
    assert b.parse_baggage(f"k8s.{kind}.name=x") == {"workload": "x"}


def test_noise_is_ignored() -> None:
    assert b.parse_baggage("unknown=1,,=,service.name=,k8s.namespace.name = a ,x") == {
        "namespace": "a"
    }


@given(st.dictionaries(st.sampled_from(sorted(LABELS)), st.text(max_size=20)))
def test_values_cannot_break_the_header(labels: dict[str, str]) -> None:
    """A label with a comma must not become another key, nor leave ASCII."""
    parsed = b.parse_baggage(b.encode_baggage(labels))
    assert set(parsed) <= set(labels)
    assert b.encode_baggage(labels).isascii()


@given(st.text(max_size=200))
def test_parsing_never_fails(header: str) -> None:
    assert all(b.parse_baggage(header).values())


def test_forwarded_quotes_and_brackets() -> None:
    assert b.forwarded_for("10.0.0.1", 1234) == 'for="10.0.0.1:1234"'
    assert b.forwarded_for("fd00::1", 1, "a.b") == 'for="[fd00::1]:1";host=a.b'


def test_traceparent_is_w3c() -> None:
    header = b.make_traceparent(bytes(range(24)))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", header)
    assert b.usable_traceparent(header)
    assert not b.usable_traceparent(header[:-1])
