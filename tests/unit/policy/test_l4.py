"""L4 authorization: matching, order of evaluation and reason texts (istio-facts 5.2, 5.3, 5.9)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
)
from metalmesh.model.identity import SpiffeId
from metalmesh.model.workload import Workload
from metalmesh.policy.l4 import Connection, Note, applicable, evaluate, unmapped

WEB = SpiffeId("cluster.local", "shop", "web")
BATCH = SpiffeId("other.example", "jobs", "batch")
TO_CART = Connection(ip_address("10.1.0.7"), ip_address("10.1.0.9"), 8080)
PLAINTEXT = TO_CART
FROM_WEB = replace(TO_CART, identity=WEB)
FROM_BATCH = replace(TO_CART, source_ip=ip_address("fd00::7"), identity=BATCH)


def exact(value: str) -> StringMatch:
    return StringMatch(MatchKind.EXACT, value)


def prefix(value: str) -> StringMatch:
    return StringMatch(MatchKind.PREFIX, value)


def suffix(value: str) -> StringMatch:
    return StringMatch(MatchKind.SUFFIX, value)


PRESENCE = StringMatch(MatchKind.PRESENCE)


def policy(
    *rules: tuple[tuple[Match, ...], ...],
    action: Action = Action.ALLOW,
    name: str = "p",
    dry_run: bool = False,
    scope: PolicyScope = PolicyScope.WORKLOAD_SELECTOR,
    namespace: str = "shop",
) -> Authorization:
    return Authorization(
        name=name,
        namespace=namespace,
        scope=scope,
        action=action,
        rules=rules,
        dry_run=dry_run,
    )


@dataclass(frozen=True)
class Row:
    """A match and whether it holds for plaintext, for shop/web and for jobs/batch over IPv6."""

    name: str
    match: Match
    plaintext: bool
    web: bool
    batch: bool


ROWS = [
    Row("no field set", Match(), False, False, False),
    Row("namespace exact", Match(namespaces=(exact("shop"),)), False, True, False),
    Row("namespace prefix", Match(namespaces=(prefix("sh"),)), False, True, False),
    Row("namespace suffix", Match(namespaces=(suffix("bs"),)), False, False, True),
    Row("namespace presence", Match(namespaces=(PRESENCE,)), False, True, True),
    Row("namespace is case-sensitive", Match(namespaces=(exact("Shop"),)), False, False, False),
    Row("any namespace", Match(namespaces=(exact("x"), exact("jobs"))), False, False, True),
    Row("not namespace", Match(not_namespaces=(exact("shop"),)), True, False, True),
    Row("not any namespace", Match(not_namespaces=(PRESENCE,)), True, False, False),
    Row(
        "principal exact",
        Match(principals=(exact("cluster.local/ns/shop/sa/web"),)),
        False, True, False,
    ),
    Row(
        "principal has no scheme",
        Match(principals=(exact("spiffe://cluster.local/ns/shop/sa/web"),)),
        False, False, False,
    ),
    Row("principal prefix", Match(principals=(prefix("other.example/"),)), False, False, True),
    Row("principal suffix", Match(principals=(suffix("/sa/web"),)), False, True, False),
    Row("principal presence", Match(principals=(PRESENCE,)), False, True, True),
    Row("not principal", Match(not_principals=(suffix("/sa/web"),)), True, False, True),
    Row("STRICT", Match(not_principals=(PRESENCE,)), True, False, False),
    Row(
        "service account whatever its trust domain",
        Match(service_accounts=(ServiceAccountMatch("jobs", "batch"),)),
        False, False, True,
    ),
    Row(
        "not service account",
        Match(not_service_accounts=(ServiceAccountMatch("shop", "web"),)),
        True, False, True,
    ),
    Row("source range", Match(source_ips=(ip_network("10.1.0.0/24"),)), True, True, False),
    Row("source IPv6", Match(source_ips=(ip_network("fd00::/8"),)), False, False, True),
    Row("source other", Match(source_ips=(ip_network("10.2.0.0/24"),)), False, False, False),
    Row("not source", Match(not_source_ips=(ip_network("10.1.0.7/32"),)), False, False, True),
    Row("destination", Match(destination_ips=(ip_network("10.1.0.9/32"),)), True, True, True),
    Row("not dest", Match(not_destination_ips=(ip_network("10.1.0.9"),)), False, False, False),
    Row("port", Match(destination_ports=(80, 8080)), True, True, True),
    Row("other port", Match(destination_ports=(80,)), False, False, False),
    Row("not port", Match(not_destination_ports=(8080,)), False, False, False),
    Row("not other port", Match(not_destination_ports=(80,)), True, True, True),
    Row(
        "all families must hold",
        Match(namespaces=(exact("shop"),), destination_ports=(80,)),
        False, False, False,
    ),
    Row(
        "wanted and unwanted of one family",
        Match(namespaces=(PRESENCE,), not_namespaces=(exact("jobs"),)),
        False, True, False,
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_match_holds_for_the_connections_it_names(row: Row) -> None:
    """istio-facts 5.3, each family with and without an identity."""
    allow = [policy(((row.match,),))]
    deny = [policy(((row.match,),), action=Action.DENY)]
    for connection, expected in (
        (PLAINTEXT, row.plaintext),
        (FROM_WEB, row.web),
        (FROM_BATCH, row.batch),
    ):
        assert evaluate(allow, connection).allowed is expected
        assert evaluate(deny, connection).allowed is not expected


WEB_MATCH = Match(namespaces=(exact("shop"),))
PORT_MATCH = Match(destination_ports=(8080,))
NEVER = Match(destination_ports=(1,))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param((), False, id="no rules never match"),
        pytest.param(((),), True, id="a rule without clauses matches everything"),
        pytest.param((((),),), True, id="a clause without matches is true"),
        pytest.param(((), ((NEVER,),)), True, id="any rule is enough"),
        pytest.param((((WEB_MATCH,), (PORT_MATCH,)),), True, id="all clauses hold"),
        pytest.param((((WEB_MATCH,), (NEVER,)),), False, id="one clause does not hold"),
        pytest.param((((NEVER, WEB_MATCH),),), True, id="any match of a clause is enough"),
        pytest.param((((Match(),), (WEB_MATCH,)),), False, id="an empty match is skipped"),
        pytest.param((((Match(), WEB_MATCH),),), True, id="an empty match beside a good one"),
    ],
)
def test_rules_clauses_and_matches_combine(
    rules: tuple[tuple[tuple[Match, ...], ...], ...], expected: bool
) -> None:
    """The ladder ANY rule, ALL clauses, ANY match."""
    assert evaluate([policy(*rules)], FROM_WEB).allowed is expected


EVERYTHING = ((),)


def test_without_allow_policies_everything_is_allowed() -> None:
    verdict = evaluate([], PLAINTEXT)
    assert (verdict.allowed, verdict.reason, verdict.error) == (
        True, "no allow policies, allow", "",
    )  # fmt: skip


def test_deny_comes_first_and_names_its_policy() -> None:
    """istio-facts 5.2 and 5.9: the text of the access log."""
    allow = policy(EVERYTHING[0], name="open")
    deny = policy(EVERYTHING[0], action=Action.DENY, name="closed")
    verdict = evaluate([allow, deny], FROM_WEB)
    assert (verdict.allowed, verdict.policy) == (False, "shop/closed")
    assert verdict.error == (
        "connection closed due to policy rejection: explicitly denied by: shop/closed"
    )


def test_unmatched_allow_policies_refuse() -> None:
    verdict = evaluate([policy(((NEVER,),))], FROM_WEB)
    assert verdict.error == (
        "connection closed due to policy rejection: allow policies exist, but none allowed"
    )


def test_matching_allow_policy_is_named() -> None:
    policies = [policy(((NEVER,),), name="a"), policy(((WEB_MATCH,),), name="b")]
    verdict = evaluate(policies, FROM_WEB)
    assert (verdict.allowed, verdict.reason, verdict.policy) == (
        True, "allow policy match", "shop/b",
    )  # fmt: skip


def test_dry_run_policies_decide_nothing_but_are_noted() -> None:
    """istio-facts 5.2, steps 1 and 3."""
    deny = policy(EVERYTHING[0], action=Action.DENY, dry_run=True)
    allow = policy(((NEVER,),), dry_run=True)
    verdict = evaluate([deny, allow], FROM_WEB)
    assert verdict.allowed
    assert verdict.notes == (
        Note("dry-run: deny policy match", "shop/p"),
        Note("dry-run: no allow policies match"),
    )
    matching = policy(((WEB_MATCH,),), dry_run=True)
    assert evaluate([matching], FROM_WEB).notes == (Note("dry-run: allow policy match", "shop/p"),)
    assert evaluate([allow, policy(((WEB_MATCH,),))], FROM_WEB).notes == ()


def test_mapped_addresses_are_compared_as_ipv4() -> None:
    """istio-facts 5.3: dual-stack sockets show IPv4 peers as ::ffff:a.b.c.d."""
    mapped = replace(PLAINTEXT, source_ip=ip_address("::ffff:10.1.0.7"))
    rule = ((Match(source_ips=(ip_network("10.1.0.7/32"),)),),)
    assert not evaluate([policy(rule, action=Action.DENY)], mapped).allowed
    assert unmapped(ip_address("fd00::1")) == ip_address("fd00::1")


def test_applicable_takes_global_namespace_and_listed_policies() -> None:
    """istio-facts 5.1; keys that are listed and unknown are reported, not skipped."""
    root = policy(name="root", namespace="istio-system", scope=PolicyScope.GLOBAL)
    own = policy(name="own", scope=PolicyScope.NAMESPACE)
    foreign = policy(name="foreign", namespace="jobs", scope=PolicyScope.NAMESPACE)
    listed = policy(name="listed")
    unlisted = policy(name="unlisted")
    workload = Workload(
        uid="u",
        name="cart",
        namespace="shop",
        authorization_policies=("shop/listed", "shop/late", "shop/own"),
    )
    chosen, missing = applicable([unlisted, listed, foreign, own, root], workload)
    assert [item.key for item in chosen] == ["istio-system/root", "shop/own", "shop/listed"]
    assert missing == ("shop/late",)


def test_policies_survive_their_dict_form() -> None:
    """The spelling of config_dump and of the pipe to the workers (istio-facts 8.6)."""
    original = policy(tuple((row.match,) for row in ROWS), action=Action.DENY, dry_run=True)
    body = original.to_dict()
    assert Authorization.from_dict(body) == original
    assert body["scope"] == "WorkloadSelector"
    assert {"notNamespaces": [{"Presence": []}]} in [clause[0] for clause in body["rules"][0]]
    assert {"sourceIps": ["10.1.0.0/24"]} in [clause[0] for clause in body["rules"][0]]


STRINGS = st.builds(
    StringMatch,
    st.sampled_from(list(MatchKind)),
    st.sampled_from(["", "s", "shop", "jobs", "cluster.local/ns/shop/sa/web"]),
)
NETWORKS = st.sampled_from(list(map(ip_network, ("10.1.0.0/24", "fd00::/8", "10.1.0.9/32"))))
ACCOUNTS = st.builds(
    ServiceAccountMatch, st.sampled_from(["shop", "jobs"]), st.sampled_from(["web", "batch"])
)


def some(entries: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(entries, max_size=2).map(tuple)


MATCHES = st.builds(
    Match,
    namespaces=some(STRINGS),
    not_namespaces=some(STRINGS),
    principals=some(STRINGS),
    not_principals=some(STRINGS),
    source_ips=some(NETWORKS),
    not_source_ips=some(NETWORKS),
    destination_ips=some(NETWORKS),
    not_destination_ips=some(NETWORKS),
    destination_ports=some(st.sampled_from([80, 8080])),
    not_destination_ports=some(st.sampled_from([80, 8080])),
    service_accounts=some(ACCOUNTS),
    not_service_accounts=some(ACCOUNTS),
)
RULES = some(some(some(MATCHES)))
POLICIES = st.builds(
    policy,
    action=st.sampled_from(list(Action)),
    dry_run=st.booleans(),
).flatmap(lambda base: RULES.map(lambda rules: replace(base, rules=rules)))
CONNECTIONS = st.sampled_from([PLAINTEXT, FROM_WEB, FROM_BATCH])


@given(st.lists(POLICIES, max_size=4), RULES, CONNECTIONS)
def test_another_deny_never_turns_a_denial_into_an_allowance(
    policies: list[Authorization], rules: tuple[object, ...], connection: Connection
) -> None:
    extra = replace(policy(action=Action.DENY), rules=rules)
    if not evaluate(policies, connection).allowed:
        assert not evaluate([*policies, extra], connection).allowed


@given(st.lists(POLICIES, max_size=4), CONNECTIONS)
def test_dry_run_policies_never_change_a_verdict(
    policies: list[Authorization], connection: Connection
) -> None:
    enforced = [item for item in policies if not item.dry_run]
    assert evaluate(policies, connection).allowed == evaluate(enforced, connection).allowed
