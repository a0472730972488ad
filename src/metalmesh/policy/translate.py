"""AuthorizationPolicy to what a ztunnel enforces (istio-facts 5.1 to 5.5 and 5.8).

Where a ztunnel cannot see what a policy asks for (HTTP attributes), the result is never wider than
the policy: an ALLOW rule goes, a DENY rule loses those attributes and so denies at least as much.
Istio instead lets such a DENY rule do nothing when nothing is left of a list, and does not look at
``trustDomains``; ``compat`` has it done that way.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    Rule,
    ServiceAccountMatch,
    StringMatch,
)
from metalmesh.model.compat import NOTHING, Deviation

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.model.resources.policies import (
        AuthorizationPolicy,
        AuthorizationRule,
        Condition,
        Fields,
    )

ANNOTATION_DRY_RUN: Final = "istio.io/dry-run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Translation:
    """What becomes of an AuthorizationPolicy, and what its status says."""

    authorization: Authorization | None
    condition: str  # "ZtunnelAccepted" or "WaypointAccepted"
    accepted: bool
    reason: str
    message: str
    #: for every rule that is enforced, the index of the policy's own rule it was made from
    origins: tuple[int, ...] = ()


# --- AuthorizationPolicy ---------------------------------------------------------------------


def translate_authorization(
    policy: AuthorizationPolicy, root_namespace: str, compat: frozenset[Deviation] = NOTHING
) -> Translation:
    """Translate one policy; the status is Istio's (istio-facts 5.8)."""
    if policy.target_refs:
        kind, _, name = policy.target_refs[0].partition("/")
        message = f"{kind} {name} is not bound to a waypoint"
        return Translation(
            authorization=None,
            condition="WaypointAccepted",
            accepted=False,
            reason="AncestorNotBound",
            message=message,
        )
    if policy.action not in ("ALLOW", "DENY"):
        return _unsupported(f"ztunnel does not support the {policy.action} action")
    action = Action[policy.action]
    rules, origins, found = _rules(policy, action, compat)
    authorization = Authorization(
        name=policy.meta.name,
        namespace=policy.meta.namespace,
        scope=_scope(policy, root_namespace),
        action=action,
        rules=rules,
        dry_run=policy.meta.annotations.get(ANNOTATION_DRY_RUN) == "true",
    )
    if not found:
        return _accepted(authorization, origins, "Accepted", "attached to ztunnel")
    message = (
        f"ztunnel does not support HTTP attributes (found: {', '.join(sorted(found))}). "
        f"In ambient mode you must use a waypoint proxy to enforce HTTP rules. "
        f"{_effect(rules, action)}"
    )
    return _accepted(authorization, origins, "UnsupportedValue", message)


def _effect(rules: tuple[Rule, ...], action: Action) -> str:
    """What became of rules with HTTP attributes; Istio's words where Istio does the same."""
    if action is Action.ALLOW:
        return (
            "Within an ALLOW policy, rules matching HTTP attributes are omitted. "
            "This will be more restrictive than requested."
        )
    if any(Match() in clause for rule in rules for clause in rule):
        return (
            "DENY rules in which nothing else is left have no effect. "
            "This will be less restrictive than requested."
        )
    return (
        "DENY policy with HTTP attributes is enforced without the HTTP rules. "
        "This will be more restrictive than requested."
    )


def _accepted(
    authorization: Authorization, origins: tuple[int, ...], reason: str, message: str
) -> Translation:
    return Translation(
        authorization=authorization,
        condition="ZtunnelAccepted",
        accepted=True,
        reason=reason,
        message=message,
        origins=origins,
    )


def _unsupported(message: str) -> Translation:
    return Translation(
        authorization=None,
        condition="ZtunnelAccepted",
        accepted=False,
        reason="UnsupportedValue",
        message=message,
    )


def _scope(policy: AuthorizationPolicy, root_namespace: str) -> PolicyScope:
    if policy.selector is not None and not policy.selector.empty:
        return PolicyScope.WORKLOAD_SELECTOR
    if policy.meta.namespace == root_namespace:
        return PolicyScope.GLOBAL
    return PolicyScope.NAMESPACE


def _rules(
    policy: AuthorizationPolicy, action: Action, compat: frozenset[Deviation]
) -> tuple[tuple[Rule, ...], tuple[int, ...], list[str]]:
    """The rules a ztunnel can enforce, their origins, and the HTTP attributes that were met."""
    rules: list[Rule] = []
    origins: list[int] = []
    found: dict[str, None] = {}
    namespace = policy.meta.namespace
    for index, rule in enumerate(policy.rules):
        if Deviation.TRUST_DOMAINS in compat:
            rule = _without_trust_domains(rule)
        attributes = _http_attributes(rule)
        found.update(dict.fromkeys(attributes))
        if attributes and action is Action.ALLOW:
            continue
        for part in _apart(rule):
            rules.append(_rule(part, namespace, compat))
            origins.append(index)
    return tuple(rules), tuple(origins), list(found)


def _without_trust_domains(rule: AuthorizationRule) -> AuthorizationRule:
    """Istio's reading: as if nobody had written them."""
    if rule.sources is None:
        return rule
    names = ("trustDomains", "notTrustDomains")
    left = (tuple(item for item in source if item[0] not in names) for source in rule.sources)
    return replace(rule, sources=tuple(left))


def _apart(rule: AuthorizationRule) -> list[AuthorizationRule]:
    """One rule per source where a source names principals and trust domains.

    Both are compared with the principal, so their AND takes two clauses, and the clauses of a
    rule hold for all of its sources.
    """
    both = {"principals", "trustDomains"}
    if not any(both <= {name for name, _ in source} for source in rule.sources or ()):
        return [rule]
    return [replace(rule, sources=(source,)) for source in rule.sources or ()]


def _rule(rule: AuthorizationRule, namespace: str, compat: frozenset[Deviation]) -> Rule:
    """From AND to AND every when; a list that matches anything is left out."""
    clauses = []
    for entries in (rule.sources, rule.operations):
        if entries is None:
            continue
        matches = tuple(_match(entry, namespace) for entry in entries)
        # an entry of HTTP attributes only has become "anything", and alternatives are ORed; as an
        # empty Match, Istio's way, it is an alternative that never matches
        anything = any(
            entry and match == Match() for entry, match in zip(entries, matches, strict=True)
        )
        if Deviation.HTTP_DENY in compat or not anything:
            clauses.append(matches)
    clauses += [
        (Match(principals=tuple(map(_trust_domain, values))),)
        for source in rule.sources or ()
        for name, values in source
        if name == "trustDomains" and "principals" in dict(source)
    ]
    clauses += [
        (_when(condition),) for condition in rule.conditions if condition.key in _WHEN_FIELDS
    ]
    return tuple(clauses)


def _match(fields: Fields, namespace: str) -> Match:
    """One source or operation without its HTTP attributes; empty when nothing is left."""
    values: dict[str, Any] = {}
    for name, texts in fields:
        negated, positive = _split_name(name)
        if positive == "trustDomains":
            if not negated and "principals" in dict(fields):
                continue  # a clause of its own
            key = "not_principals" if negated else "principals"
            values[key] = (*values.get(key, ()), *map(_trust_domain, texts))
        elif positive in _FIELDS:
            family, convert = _FIELDS[positive]
            key = f"not_{family}" if negated else family
            values[key] = tuple(convert(text, namespace) for text in texts)
    return Match(**values)


def _when(condition: Condition) -> Match:
    family, convert = _WHEN_FIELDS[condition.key]
    return Match(
        **{
            family: tuple(convert(text, "") for text in condition.values),
            f"not_{family}": tuple(convert(text, "") for text in condition.not_values),
        }
    )


def _http_attributes(rule: AuthorizationRule) -> list[str]:
    """Names of what a ztunnel cannot see in a rule."""
    entries = [*(rule.sources or ()), *(rule.operations or ())]
    names = [name for fields in entries for name, _ in fields]
    found = [name for name in names if _split_name(name)[1] not in (*_FIELDS, "trustDomains")]
    return found + [item.key for item in rule.conditions if item.key not in _WHEN_FIELDS]


def _split_name(name: str) -> tuple[bool, str]:
    """``notPorts`` to (True, "ports")."""
    if name.startswith("not"):
        return True, name[3].lower() + name[4:]
    return False, name


# --- values ----------------------------------------------------------------------------------


def _string(text: str, _namespace: str) -> StringMatch:
    if text == "*":
        return StringMatch(MatchKind.PRESENCE)
    if text.startswith("*"):
        return StringMatch(MatchKind.SUFFIX, text[1:])
    if text.endswith("*"):
        return StringMatch(MatchKind.PREFIX, text[:-1])
    return StringMatch(MatchKind.EXACT, text)


def _trust_domain(text: str) -> StringMatch:
    """A principal begins with its trust domain and a slash."""
    if text == "*":
        return StringMatch(MatchKind.PRESENCE)
    if text.endswith("*"):
        return StringMatch(MatchKind.PREFIX, text[:-1])
    return StringMatch(MatchKind.PREFIX, f"{text}/")


def _network(text: str, _namespace: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


def _port(text: str, _namespace: str) -> int:
    return int(text)


def _account(text: str, namespace: str) -> ServiceAccountMatch:
    """``NAMESPACE/NAME``, or ``NAME`` in the policy's own namespace."""
    before, slash, name = text.partition("/")
    return ServiceAccountMatch(before, name) if slash else ServiceAccountMatch(namespace, text)


#: field of a source or operation -> (family of Match, conversion of a value)
_FIELDS: Final[dict[str, tuple[str, Callable[[str, str], Any]]]] = {
    "principals": ("principals", _string),
    "namespaces": ("namespaces", _string),
    "serviceAccounts": ("service_accounts", _account),
    "ipBlocks": ("source_ips", _network),
    "ports": ("destination_ports", _port),
}
_WHEN_FIELDS: Final[dict[str, tuple[str, Callable[[str, str], Any]]]] = {
    "source.ip": ("source_ips", _network),
    "source.namespace": ("namespaces", _string),
    "source.principal": ("principals", _string),
    "destination.ip": ("destination_ips", _network),
    "destination.port": ("destination_ports", _port),
}
