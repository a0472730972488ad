"""Exclusions: what is read, what is refused, what is excluded."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from metalmesh.model.exclusions import (
    NO_EXCLUSIONS,
    Exclusions,
    parse_exclusions,
    parse_networks,
    parse_ports,
)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("", ()),
        ("22", ((22, 22),)),
        (" 80 , 22,", ((22, 22), (80, 80))),
        ("8000-8100,8050-8200,8201", ((8000, 8201),)),
        ("1-65535", ((1, 65535),)),
    ],
)
def test_ports_are_sorted_and_joined(text, ports):
    assert parse_ports(text) == ports


@pytest.mark.parametrize("text", ["http", "0", "65536", "90-80", "80-", "-80", "8 0", "80;81", "²"])
def test_what_is_no_port_is_named(text):
    with pytest.raises(ValueError, match=r"is no port|must be within"):
        parse_ports(f"22,{text}")


def test_networks_are_joined_within_a_family():
    assert parse_networks("10.0.0.0/9,10.128.0.0/9, 2001:db8::1") == (
        ip_network("10.0.0.0/8"),
        ip_network("2001:db8::1/128"),
    )
    with pytest.raises(ValueError, match="host bits"):
        parse_networks("10.0.0.1/8")


def test_faults_are_told_by_key_and_hide_nothing():
    values = {"in": "22", "out": "x", "nets": "y"}
    found, faults = parse_exclusions(values, "in", "out", "nets")
    assert found == Exclusions(inbound_ports=((22, 22),))
    assert set(faults) == {"out", "nets"}


def test_both_sides_of_a_union_count():
    first = Exclusions(inbound_ports=((22, 22),), outbound_cidrs=parse_networks("10.0.0.0/8"))
    both = first | Exclusions(inbound_ports=((23, 23),), outbound_ports=((25, 25),))
    assert both.inbound_ports == ((22, 23),)
    assert both.excludes_inbound(23)
    assert not both.excludes_inbound(24)
    assert both.excludes_outbound(ip_address("192.0.2.1"), 25)
    assert both.excludes_outbound(ip_address("10.1.2.3"), 80)
    assert not both.excludes_outbound(ip_address("192.0.2.1"), 80)
    assert not both.excludes_outbound(ip_address("::ffff:10.1.2.3"), 80)
    assert NO_EXCLUSIONS | first == first
