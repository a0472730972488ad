"""AuthorizationPolicy to what a ztunnel enforces (istio-facts 5.1 to 5.5 and 5.8).

Where a ztunnel cannot see what a policy asks for (HTTP attributes), the result is never wider than
the policy: an ALLOW rule goes, a DENY rule loses those attributes and so denies at least as much.
Istio instead lets such a DENY rule do nothing when nothing is left of a list; ``fail_closed=False``
does the same.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
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


# --- AuthorizationPolicy ---------------------------------------------------------------------


def translate_authorization(
    policy: AuthorizationPolicy, root_namespace: str, *, fail_closed: bool = True
) -> Translation:
    """Translate one policy; the status is Istio's (istio-facts 5.8)."""
    if policy.target_refs:
        message = f"{policy.target_refs[0]} is not bound to a waypoint"
        return Translation(
            authorization=None,
            condition="WaypointAccepted",
            accepted=False,
            reason="AncestorNotBound",
            message=message,
        )
    if policy.action not in ("ALLOW", "DENY"):
        return _unsupported(f"ztunnel does not support the {policy.action} action")
    if policy.meta.annotations.get(ANNOTATION_DRY_RUN) == "true":
        return _unsupported(
            f"annotation {ANNOTATION_DRY_RUN} is not supported; remove it to enforce the policy"
        )
    action = Action[policy.action]
    rules, found = _rules(policy, action, fail_closed=fail_closed)
    authorization = Authorization(
        name=policy.meta.name,
        namespace=policy.meta.namespace,
        scope=_scope(policy, root_namespace),
        action=action,
        rules=rules,
    )
    if not found:
        message = "attached to ztunnel"
        return _accepted(authorization, "Accepted", message)
    effect = _effect(rules, action)
    message = f"ztunnel does not support HTTP attributes (found: {', '.join(found)}); {effect}"
    return _accepted(authorization, "UnsupportedValue", message)


def _effect(rules: tuple[Rule, ...], action: Action) -> str:
    """What became of rules with HTTP attributes."""
    if action is Action.ALLOW:
        return "rules with them were omitted, so that the policy allows less than asked"
    if any(Match() in clause for rule in rules for clause in rule):
        return "alternatives with nothing else were dropped, so that the policy denies less"
    return "they were ignored, so that these rules deny more than asked"


def _accepted(authorization: Authorization, reason: str, message: str) -> Translation:
    return Translation(
        authorization=authorization,
        condition="ZtunnelAccepted",
        accepted=True,
        reason=reason,
        message=message,
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
    policy: AuthorizationPolicy, action: Action, *, fail_closed: bool
) -> tuple[tuple[Rule, ...], list[str]]:
    """The rules a ztunnel can enforce, and the HTTP attributes that were met."""
    rules: list[Rule] = []
    found: dict[str, None] = {}
    for rule in policy.rules:
        attributes = _http_attributes(rule)
        found.update(dict.fromkeys(attributes))
        if attributes and action is Action.ALLOW:
            continue
        rules.append(_rule(rule, policy.meta.namespace, fail_closed=fail_closed))
    return tuple(rules), list(found)


def _rule(rule: AuthorizationRule, namespace: str, *, fail_closed: bool) -> Rule:
    """From AND to AND every when; a list that matches anything is left out."""
    clauses = []
    for entries in (rule.sources, rule.operations):
        if entries is None:
            continue
        matches = tuple(_match(entry, namespace) for entry in entries)
        # an entry of HTTP attributes only has become "anything", and alternatives are ORed; as an
        # empty Match, Istio's way, it is an alternative that never matches
        if not fail_closed or Match() not in matches:
            clauses.append(matches)
    clauses += [
        (_when(condition),) for condition in rule.conditions if condition.key in _WHEN_FIELDS
    ]
    return tuple(clauses)


def _match(fields: Fields, namespace: str) -> Match:
    """One source or operation without its HTTP attributes; empty when nothing is left."""
    values: dict[str, Any] = {}
    for name, texts in fields:
        negated, positive = _split_name(name)
        if positive not in _FIELDS:
            continue
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
    found = [name for name in names if _split_name(name)[1] not in _FIELDS]
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
