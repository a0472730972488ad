"""``trustDomains`` of a source: compared with the beginning of the principal, never wider."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
import yaml

from metalmesh.errors import ResourceError
from metalmesh.model.compat import Deviation
from metalmesh.model.identity import parse_spiffe_id
from metalmesh.model.resources import ParsedObject, parse_object
from metalmesh.policy.l4 import Connection, evaluate
from metalmesh.policy.translate import translate_authorization
from metalmesh.policy.trust_domains import TrustDomains, expand_policy

OURS, THEIRS = "td", "other.td"


def read(spec: str) -> Any:
    """The parsed policy, or what is wrong with it."""
    data = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "demo"},
        "spec": yaml.safe_load(spec),
    }
    (found,) = parse_object(data, "f")
    return found.resource if isinstance(found, ParsedObject) else found


def who_may(source: str, action: str = "ALLOW", *compat: Deviation) -> set[str]:
    """Which of ns/a and ns/b of two trust domains, and plaintext, a policy of one source lets in."""
    spec = f"action: {action}\nrules: [{{from: {source}}}]"
    policy = translate_authorization(read(spec), "istio-system", frozenset(compat)).authorization
    assert policy is not None
    callers = {
        f"{td}/{ns}": parse_spiffe_id(f"spiffe://{td}/ns/{ns}/sa/x")
        for td in (OURS, THEIRS)
        for ns in "ab"
    }
    address = ip_address("10.0.0.1")
    return {
        name
        for name, identity in {**callers, "plain": None}.items()
        if evaluate([policy], Connection(address, address, 80, identity)).allowed
    }


EVERYBODY = {"td/a", "td/b", "other.td/a", "other.td/b", "plain"}
ROWS = [
    ("[{source: {trustDomains: [td]}}]", {"td/a", "td/b"}),
    ("[{source: {trustDomains: [t]}}]", set()),
    ("[{source: {trustDomains: [td, other.td]}}]", EVERYBODY - {"plain"}),
    ("[{source: {trustDomains: ['*']}}]", EVERYBODY - {"plain"}),
    ("[{source: {trustDomains: ['other*']}}]", {"other.td/a", "other.td/b"}),
    ("[{source: {notTrustDomains: [td]}}]", {"other.td/a", "other.td/b", "plain"}),
    ("[{source: {namespaces: [a], trustDomains: [td]}}]", {"td/a"}),
    ("[{source: {namespaces: [a], notTrustDomains: [td]}}]", {"other.td/a"}),
    ("[{source: {principals: ['*/ns/a/sa/x'], trustDomains: [td]}}]", {"td/a"}),
    ("[{source: {principals: ['*/ns/a/sa/x'], trustDomains: [td]}}, {source: {namespaces: [b]}}]", {"td/a", "td/b", "other.td/b"}),
    ("[{source: {notPrincipals: [td/ns/a/sa/x], notTrustDomains: [other.td]}}]", {"td/b", "plain"}),
    ("[{source: {serviceAccounts: [a/x], trustDomains: [td]}}]", {"td/a"}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "matched"), ROWS)
def test_both_actions_match_exactly_what_is_written(source: str, matched: set[str]) -> None:
    assert who_may(source) == matched
    assert who_may(source, "DENY") == EVERYBODY - matched


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("[{source: {namespaces: [a], trustDomains: [td]}}]", {"td/a", "other.td/a"}),
        ("[{source: {trustDomains: [td]}}]", set()),
    ],
)
def test_istios_way_does_not_look_at_them(source: str, allowed: set[str]) -> None:
    """The switch back; what is left without any field matches nobody, also as in Istio."""
    assert who_may(source, "ALLOW", Deviation.TRUST_DOMAINS) == allowed


@pytest.mark.parametrize("value", ["*.td", "t*d", "td/ns"])
def test_what_cannot_be_compared_is_refused(value: str) -> None:
    found = read(f"rules: [{{from: [{{source: {{trustDomains: ['{value}']}}}}]}}]")
    assert isinstance(found, ResourceError)
    assert found.field == "spec.rules[0].from[0].source.trustDomains[0]"
    assert "must be a trust domain, the beginning of one and *, or *" in found.message


def test_aliases_stand_for_each_other() -> None:
    policy = read(
        "rules: [{from: [{source: {trustDomains: [cluster.local], notTrustDomains: [x]}}]}]"
    )
    expanded = expand_policy(policy, TrustDomains("td", ("old.td",)))
    ((fields,),) = (rule.sources for rule in expanded.rules)
    assert dict(fields) == {"trustDomains": ("td", "old.td"), "notTrustDomains": ("x",)}
