"""Principals in every name of the trust domain (istiod's ``trustDomainAliases``)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from metalmesh.model.authorization import Authorization
from metalmesh.model.identity import SpiffeId
from metalmesh.model.resources import AuthorizationPolicy, ParsedObject
from metalmesh.model.resources.parse import parse_documents
from metalmesh.policy import l4
from metalmesh.policy.translate import translate_authorization
from metalmesh.policy.trust_domains import TrustDomains, expand_policy

DOMAINS = TrustDomains("new.example", ("old.example", "older"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("new.example/ns/a/sa/b", "new.example/ns/a/sa/b old.example/ns/a/sa/b older/ns/a/sa/b"),
        ("older/ns/a/sa/b", "new.example/ns/a/sa/b old.example/ns/a/sa/b older/ns/a/sa/b"),
        # a pointer to the mesh's own, as in istiod; it is not one of our names itself
        ("cluster.local/ns/a/sa/b", "new.example/ns/a/sa/b old.example/ns/a/sa/b older/ns/a/sa/b"),
        ("old.example/*", "new.example/* old.example/* older/*"),
        ("*.example/ns/a/sa/b", "*.example/ns/a/sa/b older/ns/a/sa/b"),
        ("*other/ns/a/sa/b", "*other/ns/a/sa/b"),
        ("foreign/ns/a/sa/b", "foreign/ns/a/sa/b"),
        ("*/ns/a/sa/b", "*/ns/a/sa/b"),
        ("*", "*"),
        ("old*", "old*"),
        ("/ns/a/sa/b", "/ns/a/sa/b"),
    ],
)
def test_principal_stands_for_all_of_our_domains(given: str, expected: str) -> None:
    assert DOMAINS.expand_principals([given]) == tuple(expected.split())


def test_principals_are_listed_once() -> None:
    names = ["old.example/ns/a/sa/b", "older/ns/a/sa/b", "*"]
    assert len(DOMAINS.expand_principals(names)) == 4


def test_without_aliases_nothing_changes() -> None:
    plain = TrustDomains()
    names = ("cluster.local/ns/a/sa/b", "x/ns/a/sa/b", "*local/ns/a/sa/b", "cluster.local/*")
    assert plain.expand_principals(names) == names
    assert plain.expand_identities(names) == names


def test_identities_of_foreign_domains_stay_alone() -> None:
    assert TrustDomains("a", ("b",)).expand_identities(
        ["spiffe://a/ns/n/sa/s", "spiffe://x/ns/n/sa/s"]
    ) == ("spiffe://a/ns/n/sa/s", "spiffe://x/ns/n/sa/s", "spiffe://b/ns/n/sa/s")


def _policy(rule: str, action: str = "ALLOW") -> AuthorizationPolicy:
    text = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: shop}}
spec: {{action: {action}, rules: [{rule}]}}
"""
    (found,) = parse_documents(text, "-")
    assert isinstance(found, ParsedObject)
    assert isinstance(found.resource, AuthorizationPolicy)
    return found.resource


def _allowed(policy: AuthorizationPolicy, domains: TrustDomains, principal: str) -> bool:
    translated = translate_authorization(expand_policy(policy, domains), "istio-system")
    authorization = translated.authorization
    assert isinstance(authorization, Authorization)
    domain, _, namespace, _, account = principal.split("/")
    address = ip_address("10.0.0.1")
    caller = l4.Connection(address, address, 80, SpiffeId(domain, namespace, account))
    return l4.evaluate([authorization], caller).allowed


RULES = {
    "principals": "{from: [{source: {principals: [%s/ns/shop/sa/web]}}]}",
    "when": "{when: [{key: source.principal, values: [%s/ns/shop/sa/web]}]}",
}
REFUSING = {
    "notPrincipals": "{from: [{source: {notPrincipals: [%s/ns/shop/sa/web]}}]}",
    "when": "{when: [{key: source.principal, notValues: [%s/ns/shop/sa/web]}]}",
}


@pytest.mark.parametrize("written", ["new.example", "older", "cluster.local"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("caller", ["new.example", "old.example", "older"])
def test_policy_matches_callers_of_every_domain(rule: str, written: str, caller: str) -> None:
    policy = _policy(rule % written)
    assert _allowed(policy, DOMAINS, f"{caller}/ns/shop/sa/web")
    assert not _allowed(policy, DOMAINS, "foreign/ns/shop/sa/web")
    # the negative twin: without aliases only the domain that is written
    assert _allowed(policy, TrustDomains("x"), f"{caller}/ns/shop/sa/web") == (caller == written)


@pytest.mark.parametrize("rule", REFUSING.values(), ids=REFUSING)
def test_exceptions_hold_for_every_domain(rule: str) -> None:
    """DENY everybody but one: that one under all its names."""
    policy = _policy(rule % "new.example", "DENY")
    for domain in DOMAINS.names:
        assert _allowed(policy, DOMAINS, f"{domain}/ns/shop/sa/web")
        assert not _allowed(policy, DOMAINS, f"{domain}/ns/shop/sa/other")


def test_policy_without_principals_is_the_same_object() -> None:
    policy = _policy("{to: [{operation: {ports: ['80']}}]}")
    assert expand_policy(policy, DOMAINS) is policy
