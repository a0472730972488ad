"""L4 authorization policies as a ztunnel enforces them (istio-facts 3.4 and 5.3).

``Authorization.to_dict``/``from_dict`` use ztunnel's own spelling (``config_dump`` and local
files, istio-facts 8.3 and 8.6), which is also how a policy travels to the data workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

IPNetwork = IPv4Network | IPv6Network


class PolicyScope(Enum):
    """What a policy covers: the mesh, its namespace, or the workloads that list it."""

    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class Action(Enum):
    """What a matching policy does."""

    ALLOW = "Allow"
    DENY = "Deny"


class MatchKind(Enum):
    """How a string is compared; ``PRESENCE`` matches any non-empty value."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    SUFFIX = "Suffix"
    PRESENCE = "Presence"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """One string comparison; case-sensitive."""

    kind: MatchKind
    value: str = ""


@dataclass(frozen=True, slots=True)
class ServiceAccountMatch:
    """A service account, whatever its trust domain."""

    namespace: str
    service_account: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """All non-empty families must hold; a Match without any field never matches."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[IPNetwork, ...] = ()
    not_source_ips: tuple[IPNetwork, ...] = ()
    destination_ips: tuple[IPNetwork, ...] = ()
    not_destination_ips: tuple[IPNetwork, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()


#: matches of a clause are alternatives; clauses of a rule must all hold
Clause = tuple[Match, ...]
Rule = tuple[Clause, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Authorization:
    """One policy; its rules are alternatives, and no rules means it never matches."""

    name: str
    namespace: str
    scope: PolicyScope
    action: Action
    rules: tuple[Rule, ...] = field(default=())
    dry_run: bool = False

    @property
    def key(self) -> str:
        """``namespace/name``, the resource name in xDS."""
        return f"{self.namespace}/{self.name}"
