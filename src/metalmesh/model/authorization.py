"""L4 authorization policies as a ztunnel enforces them (istio-facts 3.4 and 5.3).

``Authorization.to_dict``/``from_dict`` use ztunnel's own spelling (``config_dump`` and local
files, istio-facts 8.3 and 8.6), which is also how a policy travels to the data workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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

    def to_dict(self) -> dict[str, Any]:
        """The policy in ztunnel's spelling; families without entries are left out."""
        return {
            "name": self.name,
            "namespace": self.namespace,
            "scope": self.scope.value,
            "action": self.action.value,
            "rules": [
                [[_match_to_dict(match) for match in clause] for clause in rule]
                for rule in self.rules
            ],
            "dryRun": self.dry_run,
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Authorization:
        """Parse ztunnel's spelling; raise :class:`ProtocolError` naming the policy."""
        where = f"policy {body.get('namespace')}/{body.get('name')}"
        unknown = body.keys() - {"name", "namespace", "scope", "action", "rules", "dryRun"}
        if unknown:
            raise ProtocolError(f"{where}: unknown key {min(unknown)!r}")
        try:
            return cls(
                name=str(body["name"]),
                namespace=str(body["namespace"]),
                scope=PolicyScope(body["scope"]),
                action=Action(body["action"]),
                rules=tuple(
                    tuple(tuple(_match_from_dict(match) for match in clause) for clause in rule)
                    for rule in body["rules"]
                ),
                dry_run=bool(body["dryRun"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"{where} is malformed: {error!r}") from error


def _string_to_dict(match: StringMatch) -> dict[str, Any]:
    return {match.kind.value: [] if match.kind is MatchKind.PRESENCE else match.value}


def _string_from_dict(body: Mapping[str, Any]) -> StringMatch:
    ((kind, value),) = body.items()
    parsed = MatchKind(kind)
    return StringMatch(parsed, "" if parsed is MatchKind.PRESENCE else str(value))


def _account_to_dict(match: ServiceAccountMatch) -> dict[str, str]:
    return {"namespace": match.namespace, "serviceAccount": match.service_account}


def _account_from_dict(body: Mapping[str, Any]) -> ServiceAccountMatch:
    return ServiceAccountMatch(str(body["namespace"]), str(body["serviceAccount"]))


#: last word of a family's field name -> how its entries are written and read
_CODECS: Final[dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "namespaces": (_string_to_dict, _string_from_dict),
    "principals": (_string_to_dict, _string_from_dict),
    "ips": (str, ip_network),
    "ports": (int, int),
    "accounts": (_account_to_dict, _account_from_dict),
}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


#: field of Match -> (its key in ztunnel's spelling, writer, reader)
_FAMILIES: Final = {
    entry.name: (_camel(entry.name), *_CODECS[entry.name.rpartition("_")[2]])
    for entry in fields(Match)
}
_FIELD_OF_KEY: Final = {key: name for name, (key, _, _) in _FAMILIES.items()}


def _match_to_dict(match: Match) -> dict[str, Any]:
    body = {}
    for name, (key, write, _) in _FAMILIES.items():
        entries = getattr(match, name)
        if entries:
            body[key] = [write(entry) for entry in entries]
    return body


def _match_from_dict(body: Mapping[str, Any]) -> Match:
    values: dict[str, Any] = {}
    for key, entries in body.items():
        name = _FIELD_OF_KEY[key]
        values[name] = tuple(map(_FAMILIES[name][2], entries))
    return Match(**values)
