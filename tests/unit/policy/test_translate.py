"""AuthorizationPolicy to L4 (istio-facts 5.1 to 5.5, 5.8), and what its status says."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
import yaml

from metalmesh.model.authorization import (
    Action,
    Match,
    MatchKind,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
)
from metalmesh.model.compat import Deviation
from metalmesh.model.resources import ParsedObject, parse_object
from metalmesh.policy.translate import Translation, translate_authorization

NET = ipaddress.ip_network


def _read(spec: str, namespace: str = "demo", annotations: str = "{}") -> Any:
    data = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {
            "name": "p",
            "namespace": namespace,
            "annotations": yaml.safe_load(annotations),
        },
        "spec": yaml.safe_load(spec),
    }
    (found,) = parse_object(data, "f")
    assert isinstance(found, ParsedObject), found
    return found.resource


def _translate(spec: str, namespace: str = "demo", annotations: str = "{}") -> Translation:
    return translate_authorization(_read(spec, namespace, annotations), "istio-system")


def _rules(spec: str) -> tuple:
    translated = _translate(spec).authorization
    assert translated is not None
    return translated.rules


def _exact(text: str) -> tuple[StringMatch, ...]:
    return (StringMatch(MatchKind.EXACT, text),)


@pytest.mark.parametrize(
    ("spec", "namespace", "scope"),
    [
        ("{}", "istio-system", PolicyScope.GLOBAL),
        ("{}", "demo", PolicyScope.NAMESPACE),
        ("selector: {}", "demo", PolicyScope.NAMESPACE),
        ("selector: {matchLabels: {}}", "istio-system", PolicyScope.GLOBAL),
        ("selector: {matchLabels: {a: b}}", "demo", PolicyScope.WORKLOAD_SELECTOR),
        ("selector: {matchLabels: {a: b}}", "istio-system", PolicyScope.WORKLOAD_SELECTOR),
    ],
)
def test_scope_follows_selector_and_root_namespace(
    spec: str, namespace: str, scope: PolicyScope
) -> None:
    translated = _translate(spec, namespace).authorization
    assert translated is not None
    assert translated.scope is scope


STRINGS = {
    "*": StringMatch(MatchKind.PRESENCE),
    "*/sa/a": StringMatch(MatchKind.SUFFIX, "/sa/a"),
    "td/*": StringMatch(MatchKind.PREFIX, "td/"),
    "td/ns/a/sa/b": StringMatch(MatchKind.EXACT, "td/ns/a/sa/b"),
}


@pytest.mark.parametrize(("text", "expected"), STRINGS.items())
def test_wildcards_become_presence_prefix_and_suffix(text: str, expected: StringMatch) -> None:
    (((match,),),) = _rules(f"rules: [{{from: [{{source: {{principals: ['{text}']}}}}]}}]")
    assert match.principals == (expected,)


EVERYTHING = """
rules:
- from:
  - source: {principals: [a], notPrincipals: [b], ipBlocks: [10.0.0.0/8, 192.0.2.1], notIpBlocks: [10.1.0.0/16]}
  - source: {namespaces: [c], notNamespaces: [d]}
  - source: {serviceAccounts: [sa, other/sa], notServiceAccounts: [x]}
  to:
  - operation: {ports: ["80", "443"], notPorts: ["8080"]}
  when:
  - {key: source.ip, values: [10.0.0.0/8], notValues: [10.2.0.0/16]}
  - {key: source.namespace, values: ["n*"]}
  - {key: source.principal, notValues: ["*"]}
  - {key: destination.ip, values: ["fd00::/64"]}
  - {key: destination.port, values: ["90"]}
"""


def test_every_l4_field_is_translated() -> None:
    (rule,) = _rules(EVERYTHING)
    sources, operations, *conditions = rule
    assert sources == (
        Match(
            principals=_exact("a"),
            not_principals=_exact("b"),
            source_ips=(NET("10.0.0.0/8"), NET("192.0.2.1/32")),
            not_source_ips=(NET("10.1.0.0/16"),),
        ),
        Match(namespaces=_exact("c"), not_namespaces=_exact("d")),
        Match(
            service_accounts=(
                ServiceAccountMatch("demo", "sa"),
                ServiceAccountMatch("other", "sa"),
            ),
            not_service_accounts=(ServiceAccountMatch("demo", "x"),),
        ),
    )
    assert operations == (Match(destination_ports=(80, 443), not_destination_ports=(8080,)),)
    assert conditions == [
        (Match(source_ips=(NET("10.0.0.0/8"),), not_source_ips=(NET("10.2.0.0/16"),)),),
        (Match(namespaces=(StringMatch(MatchKind.PREFIX, "n"),)),),
        (Match(not_principals=(StringMatch(MatchKind.PRESENCE),)),),
        (Match(destination_ips=(NET("fd00::/64"),)),),
        (Match(destination_ports=(90,)),),
    ]


def test_no_rules_and_an_empty_rule_stay_apart() -> None:
    """No rules never match (ALLOW: nobody may); an empty rule matches everything."""
    assert _rules("action: ALLOW") == ()
    assert _rules("rules: [{}]") == ((),)


FROM_A = "from: [{source: {namespaces: [a]}}]"
SOURCE_A = (Match(namespaces=_exact("a")),)
PORT_80 = (Match(destination_ports=(80,)),)

HTTP = [
    ("ALLOW loses the rule", "ALLOW", f"{{{FROM_A}, to: [{{operation: {{methods: [GET]}}}}]}}", None),
    ("ALLOW loses a rule with ports too", "ALLOW", f"{{{FROM_A}, to: [{{operation: {{methods: [GET], ports: ['80']}}}}]}}", None),
    ("ALLOW loses it for a condition", "ALLOW", f"{{{FROM_A}, when: [{{key: 'request.headers[x]', values: [y]}}]}}", None),
    ("ALLOW loses it for one of two operations", "ALLOW", "{to: [{operation: {ports: ['80']}}, {operation: {paths: [/x]}}]}", None),
    ("DENY keeps the source", "DENY", f"{{{FROM_A}, to: [{{operation: {{methods: [GET]}}}}]}}", (SOURCE_A,)),
    ("DENY keeps the port", "DENY", "{to: [{operation: {methods: [GET], ports: ['80']}}]}", (PORT_80,)),
    ("DENY of HTTP only denies all", "DENY", "{to: [{operation: {paths: [/admin]}}]}", ()),
    ("DENY widens an alternative of HTTP only", "DENY", "{to: [{operation: {ports: ['80']}}, {operation: {hosts: [h]}}]}", ()),
    ("DENY ignores negative attributes", "DENY", "{to: [{operation: {notMethods: [GET], ports: ['80']}}]}", (PORT_80,)),
    ("DENY ignores a condition", "DENY", f"{{{FROM_A}, when: [{{key: request.auth.principal, values: [y]}}]}}", (SOURCE_A,)),
    ("DENY ignores request principals", "DENY", "{from: [{source: {requestPrincipals: ['*'], namespaces: [a]}}]}", (SOURCE_A,)),
    ("DENY ignores forwarded addresses", "DENY", "{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}], to: [{operation: {ports: ['80']}}]}", (PORT_80,)),
]  # fmt: skip


@pytest.mark.parametrize("case", HTTP, ids=[row[0] for row in HTTP])
def test_http_attributes_never_widen_access(case: tuple) -> None:
    """An ALLOW rule goes; a DENY rule denies at least as much."""
    _, action, rule, expected = case
    spec = f"action: {action}\nrules: [{rule}]"
    assert _rules(spec) == (() if expected is None else (expected,))
    status = _translate(spec)
    assert (status.accepted, status.reason) == (True, "UnsupportedValue")
    assert status.message.startswith("ztunnel does not support HTTP attributes (found: ")


ISTIOS_WAY = [
    ("{to: [{operation: {paths: [/admin]}}]}", ((Match(),),)),
    (f"{{{FROM_A}, to: [{{operation: {{methods: [GET]}}}}]}}", (SOURCE_A, (Match(),))),
    ("{to: [{operation: {ports: ['80']}}, {operation: {hosts: [h]}}]}", ((*PORT_80, Match()),)),
    ("{to: [{operation: {methods: [GET], ports: ['80']}}]}", (PORT_80,)),
    (f"{{{FROM_A}, when: [{{key: request.auth.principal, values: [y]}}]}}", (SOURCE_A,)),
]


@pytest.mark.parametrize(("rule", "expected"), ISTIOS_WAY)
def test_istios_way_keeps_alternatives_that_never_match(rule: str, expected: tuple) -> None:
    """The switch back: an empty Match is skipped by a ztunnel (istio-facts 5.5)."""
    translated = translate_authorization(
        _read(f"action: DENY\nrules: [{rule}]"), "istio-system", frozenset({Deviation.HTTP_DENY})
    )
    assert translated.authorization is not None
    assert translated.authorization.rules == (expected,)
    empty = any(Match() in clause for clause in expected)
    assert ("less restrictive than requested" in translated.message) is empty


def test_other_rules_of_an_allow_policy_stay() -> None:
    assert _rules(
        "rules: [{to: [{operation: {paths: [/x]}}]}, {to: [{operation: {ports: ['80']}}]}]"
    ) == ((PORT_80,),)


def test_status_names_every_http_attribute_once() -> None:
    rule = "{to: [{operation: {paths: [/x], notHosts: [h]}}, {operation: {paths: [/y]}}]}"
    message = _translate(f"action: DENY\nrules: [{rule}]").message
    assert message == (
        "ztunnel does not support HTTP attributes (found: notHosts, paths). In ambient mode you must "
        "use a waypoint proxy to enforce HTTP rules. DENY policy with HTTP attributes is enforced "
        "without the HTTP rules. This will be more restrictive than requested."
    )
    message = _translate(f"rules: [{rule}]").message
    assert message.endswith(
        "Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more "
        "restrictive than requested."
    )


def test_plain_policy_is_accepted() -> None:
    status = _translate("rules: [{}]")
    assert (status.condition, status.accepted, status.reason, status.message) == (
        "ZtunnelAccepted",
        True,
        "Accepted",
        "attached to ztunnel",
    )


@pytest.mark.parametrize("action", ["AUDIT", "CUSTOM"])
def test_actions_a_ztunnel_does_not_have_are_refused(action: str) -> None:
    status = _translate(f"action: {action}\nrules: [{{}}]")
    assert status.authorization is None
    assert (status.accepted, status.reason) == (False, "UnsupportedValue")
    assert status.message == f"ztunnel does not support the {action} action"


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("false", False), ("yes", False)])
def test_annotation_makes_a_dry_run(value: str, expected: bool) -> None:
    """Evaluated and logged, never enforced (istio-facts 5.4); the status is as ever."""
    status = _translate("action: DENY\nrules: [{}]", annotations=f"{{istio.io/dry-run: '{value}'}}")
    assert status.authorization is not None
    assert status.authorization.dry_run is expected
    assert (status.accepted, status.reason) == (True, "Accepted")


def test_policy_of_a_waypoint_is_not_sent() -> None:
    status = _translate("targetRefs: [{kind: Service, name: echo}]\nrules: [{}]")
    assert status.authorization is None
    assert (status.condition, status.accepted, status.reason, status.message) == (
        "WaypointAccepted",
        False,
        "AncestorNotBound",
        "Service echo is not bound to a waypoint",
    )


def test_action_is_translated() -> None:
    denied = _translate("action: DENY").authorization
    assert denied is not None
    assert denied.action is Action.DENY
