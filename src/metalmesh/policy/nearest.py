"""Which ALLOW rule comes closest to a connection that none allows, and what is missing; pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from metalmesh.model.authorization import Action, Match, MatchKind, StringMatch
from metalmesh.policy.l4 import unmet_clauses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from metalmesh.model.authorization import Authorization, Clause
    from metalmesh.policy.l4 import Connection


@dataclass(frozen=True, slots=True)
class Nearest:
    """A rule, and why it does not match."""

    policy: str
    #: index among the rules in force, -1 when the policy has none
    rule: int
    text: str


def nearest_rule(policies: Sequence[Authorization], connection: Connection) -> Nearest:
    """The rule with the fewest conditions that are not met; there is an ALLOW policy."""
    allowing = [item for item in policies if item.action is Action.ALLOW and not item.dry_run]
    found = [
        (len(unmet), policy.key, index, unmet)
        for policy in allowing
        for index, rule in enumerate(policy.rules)
        if (unmet := unmet_clauses(rule, connection))
    ]
    if not found:
        return Nearest(allowing[0].key, -1, "it has no rules that a ztunnel can apply")
    _, key, index, unmet = min(found, key=lambda item: item[:3])
    return Nearest(key, index, " and ".join(_missing(clause, connection) for clause in unmet))


def _missing(clause: Clause, connection: Connection) -> str:
    """What an alternative of the clause would have to see, family by family."""
    texts = [_family_texts(match, connection) for match in clause]
    return " or ".join(dict.fromkeys(", ".join(found) for found in texts if found))


def _family_texts(match: Match, connection: Connection) -> list[str]:
    found = []
    for field in fields(Match):
        entries = getattr(match, field.name)
        alone = Match(**{field.name: entries})
        if entries and unmet_clauses(((alone,),), connection):
            positive = field.name.removeprefix("not_")
            label, value = _VALUES[positive]
            wanted = ", ".join(map(_entry, entries))
            verb = "must not be" if positive != field.name else "must be"
            found.append(f"{label} {value(connection) or 'nobody'} {verb} {wanted}")
    return found or ["nothing of it can match at layer 4"]


def _entry(entry: Any) -> str:
    if isinstance(entry, StringMatch):
        head = "*" if entry.kind in (MatchKind.SUFFIX, MatchKind.PRESENCE) else ""
        return head + entry.value + ("*" if entry.kind is MatchKind.PREFIX else "")
    if hasattr(entry, "service_account"):
        return f"{entry.namespace}/{entry.service_account}"
    return str(entry)


def _principal(connection: Connection) -> str:
    return connection.identity.principal if connection.identity else ""


def _namespace(connection: Connection) -> str:
    return connection.identity.namespace if connection.identity else ""


def _account(connection: Connection) -> str:
    identity = connection.identity
    return f"{identity.namespace}/{identity.service_account}" if identity else ""


_VALUES: Final[dict[str, tuple[str, Callable[[Connection], str]]]] = {
    "namespaces": ("namespace", _namespace),
    "principals": ("principal", _principal),
    "service_accounts": ("service account", _account),
    "source_ips": ("source", lambda connection: connection.source),
    "destination_ips": ("destination", lambda connection: connection.destination),
    "destination_ports": ("port", lambda connection: str(connection.destination_port)),
}
