"""Trust-domain aliases: other names under which the mesh's own workloads may be known.

As in istiod (``trustDomainAliases``), a principal that names the mesh's trust domain or one of its
aliases stands for the same workload in all of them; ``cluster.local`` always means the mesh's own.
Principals that leave the trust domain open, or name a foreign one, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from metalmesh.constants import DEFAULT_TRUST_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metalmesh.model.resources.policies import (
        AuthorizationPolicy,
        AuthorizationRule,
        Condition,
        Fields,
    )

_FIELDS = ("principals", "notPrincipals")
_DOMAIN_FIELDS = ("trustDomains", "notTrustDomains")
_CONDITION = "source.principal"


@dataclass(frozen=True, slots=True)
class TrustDomains:
    """The mesh's trust domain and its aliases."""

    own: str = DEFAULT_TRUST_DOMAIN
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, the mesh's own first."""
        return tuple(dict.fromkeys((self.own, *self.aliases)))

    def expand_principals(self, principals: Iterable[str]) -> tuple[str, ...]:
        """Every principal in every trust domain it may come from; each once, in order."""
        found: dict[str, None] = {}
        for principal in principals:
            found.update(dict.fromkeys(self._expand(principal)))
        return tuple(found)

    def _expand(self, principal: str) -> list[str]:
        domain, slash, rest = principal.partition("/")
        if not slash or domain in ("", "*"):
            return [principal]
        if domain.startswith("*"):  # "*.example/ns/...": some of our domains may match already
            suffix = domain[1:]
            missed = [name for name in self.names if not name.endswith(suffix)]
            known = len(missed) < len(self.names)
            return [principal, *(f"{name}/{rest}" for name in missed)] if known else [principal]
        if domain in self.names or domain == DEFAULT_TRUST_DOMAIN:
            return [f"{name}/{rest}" for name in self.names]
        return [principal]

    def expand_domains(self, domains: Iterable[str]) -> tuple[str, ...]:
        """Trust domains as sources name them; one of ours stands for all of ours."""
        found: dict[str, None] = {}
        for domain in domains:
            ours = domain in self.names or domain == DEFAULT_TRUST_DOMAIN
            found.update(dict.fromkeys(self.names if ours else (domain,)))
        return tuple(found)

    def expand_identities(self, uris: Iterable[str]) -> tuple[str, ...]:
        """SPIFFE URIs of ours in every trust domain, the given ones first."""
        given = tuple(uris)
        if not self.aliases:
            return given
        found = dict.fromkeys(given)
        for uri in given:
            domain, slash, rest = uri.removeprefix("spiffe://").partition("/")
            if slash and domain in self.names:
                found.update(dict.fromkeys(f"spiffe://{name}/{rest}" for name in self.names))
        return tuple(found)


def expand_policy(policy: AuthorizationPolicy, domains: TrustDomains) -> AuthorizationPolicy:
    """The policy with its principals in every trust domain; the same one if nothing changes."""
    rules = tuple(_rule(rule, domains) for rule in policy.rules)
    return policy if rules == policy.rules else replace(policy, rules=rules)


def _rule(rule: AuthorizationRule, domains: TrustDomains) -> AuthorizationRule:
    sources = rule.sources
    if sources is not None:
        sources = tuple(_fields(fields, domains) for fields in sources)
    conditions = tuple(_condition(condition, domains) for condition in rule.conditions)
    return replace(rule, sources=sources, conditions=conditions)


def _fields(fields: Fields, domains: TrustDomains) -> Fields:
    found = []
    for name, values in fields:
        if name in _FIELDS:
            found.append((name, domains.expand_principals(values)))
        elif name in _DOMAIN_FIELDS:
            found.append((name, domains.expand_domains(values)))
        else:
            found.append((name, values))
    return tuple(found)


def _condition(condition: Condition, domains: TrustDomains) -> Condition:
    if condition.key != _CONDITION:
        return condition
    return replace(
        condition,
        values=domains.expand_principals(condition.values),
        not_values=domains.expand_principals(condition.not_values),
    )
