"""Redirection rules say what istio-facts 1.4 says, whatever their golden text looks like."""

from __future__ import annotations

import itertools

import pytest

from metalmesh.render.redirection import RedirectionConfig, render_redirection

CONFIGS = [
    RedirectionConfig(ipv6=ipv6, dns_capture=dns, bypass_inbound=bypass)
    for ipv6, dns, bypass in itertools.product((False, True), repeat=3)
]


def rules(text: str, table: str, chain: str) -> list[str]:
    """The rules of one chain, empty when there is no such chain."""
    body = text.partition(f"table inet {table} {{")[2].partition("\n}")[0]
    lines = body.partition(f"\tchain {chain} {{\n")[2].partition("\n\t}")[0]
    return [line.strip() for line in lines.splitlines()]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_leaf_rule_counts_and_is_commented(config):
    text = render_redirection(config)
    leaves = [
        rule
        for table in config.tables
        for chain in ("istio-prerouting", "istio-output")
        for rule in rules(text, table, chain)
    ]
    assert leaves
    assert all(" counter " in rule and ' comment "' in rule for rule in leaves)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_marks_are_compared_under_the_mask_only(config):
    text = render_redirection(config)
    assert text.count("0x539") == text.count("mark and 0xfff != 0x539") + text.count(
        "mark and 0xfff == 0x539"
    )


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_ipv6_rules_exist_exactly_when_ipv6_is_on(config):
    assert ("ip6 " in render_redirection(config)) is config.ipv6


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_outbound_redirect_is_the_last_word(config):
    output = rules(render_redirection(config), "istio-ambient-nat", "istio-output")
    assert "redirect to :15001" in output[-1]
    assert sum("redirect to :15001" in rule for rule in output) == (2 if config.ipv6 else 1)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_bypass_drops_inbound_capture_and_nothing_else(config):
    text = render_redirection(config)
    assert ("redirect to :15006" in text) is not config.bypass_inbound
    assert "type route hook output" in text
    assert bool(rules(text, "istio-ambient-mangle", "istio-prerouting"))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_raw_table_exists_only_for_dns_capture(config):
    text = render_redirection(config)
    assert ("table inet istio-ambient-raw {" in text) is config.dns_capture
    assert "delete table inet istio-ambient-raw\n" in text


def test_virtual_interfaces_are_outbound_before_anything_else():
    text = render_redirection(RedirectionConfig(virtual_interfaces=("tap0",), bypass_inbound=True))
    first, second = rules(text, "istio-ambient-nat", "istio-prerouting")
    assert first.startswith('iifname "tap0" meta l4proto tcp counter redirect to :15001')
    assert second.startswith('iifname "tap0" meta l4proto tcp counter return')
