"""PeerAuthentication and AuthorizationPolicy."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

from typing import Any

import pytest


def test_peer_authentication_is_read(read: Any) -> None:
    policy = read(
        "PeerAuthentication",
        "selector: {matchLabels: {app: a}}\nmtls: {mode: STRICT}\n"
        "portLevelMtls: {8080: {mode: PERMISSIVE}, '9090': {mode: UNSET}}".replace(
            "8080", "'8080'"
        ),
    )
    assert (policy.mode, dict(policy.port_modes)) == ("STRICT", {8080: "PERMISSIVE", 9090: "UNSET"})
    assert policy.selector.matches({"app": "a", "b": "c"})
    assert read("PeerAuthentication", "{}").mode == "UNSET"


def test_authorization_policy_is_read(read: Any) -> None:
    policy = read(
        "AuthorizationPolicy",
        "selector: {matchLabels: {app: a}}\naction: DENY\nrules:\n"
        "- from: [{source: {principals: ['*'], notNamespaces: [b]}}]\n"
        "  to: [{operation: {ports: ['80'], paths: [/x]}}]\n"
        "  when: [{key: source.ip, notValues: [10.0.0.0/8]}]\n- {}",
    )
    first, second = policy.rules
    assert first.sources == ((("principals", ("*",)), ("notNamespaces", ("b",))),)
    assert first.operations == ((("ports", ("80",)), ("paths", ("/x",))),)
    assert (first.conditions[0].key, first.conditions[0].not_values) == (
        "source.ip",
        ("10.0.0.0/8",),
    )
    assert (second.sources, second.operations, second.conditions) == (None, None, ())


RULE = "rules: [{from: [{source: {%s}}]}]"
WRONG = [
    ("PeerAuthentication", "mtls: {mode: strict}", "spec.mtls.mode: must be one of UNSET, DISABLE, PERMISSIVE, STRICT, got 'strict'"),
    ("PeerAuthentication", "portLevelMtls: {'80': {mode: STRICT}}", "spec.portLevelMtls: needs a selector with matchLabels; add one"),
    ("PeerAuthentication", "selector: {matchLabels: {a: b}}\nportLevelMtls: {'0': {}}", "spec.portLevelMtls.0: must be a port, 1 to 65535"),
    ("PeerAuthentication", "selector: {matchExpressions: []}", "spec.selector.matchExpressions: unknown field; remove it"),
    ("AuthorizationPolicy", "action: deny", "spec.action: must be one of ALLOW, DENY, AUDIT, CUSTOM, got 'deny'"),
    ("AuthorizationPolicy", RULE % "", "spec.rules[0].from[0].source: must have at least one field"),
    ("AuthorizationPolicy", RULE % "trustDomain: [a]", "spec.rules[0].from[0].source.trustDomain: unknown field; did you mean trustDomains?"),
    ("AuthorizationPolicy", RULE % "ipBlocks: [10.0.0.300]", "spec.rules[0].from[0].source.ipBlocks[0]: '10.0.0.300' is not a CIDR such as 10.0.0.0/8"),
    ("AuthorizationPolicy", RULE % "principals: ['a*b']", "spec.rules[0].from[0].source.principals[0]: 'a*b' may have one * only, at its start or end"),
    ("AuthorizationPolicy", RULE % "namespaces: ['*a*']", "spec.rules[0].from[0].source.namespaces[0]: '*a*' may have one * only, at its start or end"),
    ("AuthorizationPolicy", RULE % "namespaces: ['']", "spec.rules[0].from[0].source.namespaces[0]: must not be empty"),
    ("AuthorizationPolicy", RULE % "serviceAccounts: ['a/b/c']", "spec.rules[0].from[0].source.serviceAccounts[0]: 'a/b/c' must be NAME or NAMESPACE/NAME, no wildcard"),
    ("AuthorizationPolicy", RULE % "serviceAccounts: [a], namespaces: [b]", "spec.rules[0].from[0].source.serviceAccounts: cannot be combined with principals or namespaces"),
    ("AuthorizationPolicy", "rules: [{from: []}]", "spec.rules[0].from: must not be empty; remove it to match any source"),
    ("AuthorizationPolicy", "rules: [{from: [{}]}]", "spec.rules[0].from[0].source: is required"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {ports: ['http']}}]}]", "spec.rules[0].to[0].operation.ports[0]: 'http' must be a port, 1 to 65535"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {ports: [80]}}]}]", "spec.rules[0].to[0].operation.ports[0]: must be a string, got 80; quote it"),
    ("AuthorizationPolicy", "rules: [{when: [{key: source.ip}]}]", "spec.rules[0].when[0].values: or notValues must be given"),
    ("AuthorizationPolicy", "rules: [{when: [{key: source.up, values: [a]}]}]", "spec.rules[0].when[0].key: unknown attribute 'source.up'; did you mean source.ip?"),
    ("AuthorizationPolicy", "rules: [{when: [{key: destination.port, values: ['x']}]}]", "spec.rules[0].when[0].values[0]: 'x' must be a port, 1 to 65535"),
    ("AuthorizationPolicy", "rules: [null]", "spec.rules[0]: must be a mapping, got null; write {} for any"),
    ("AuthorizationPolicy", "selector: {matchLabels: {a: b}}\ntargetRefs: [{kind: Service, name: s}]", "spec.selector: cannot be combined with targetRefs; keep one of the two"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=[f"{row[0]} {row[1][:50]}" for row in WRONG])
def test_fault_names_field_and_remedy(read: Any, case: tuple[str, str, str]) -> None:
    found = read(case[0], case[1])
    assert isinstance(found, list), "accepted"
    assert case[2] in found
