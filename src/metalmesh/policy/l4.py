"""L4 authorization of one inbound connection, with Istio's semantics (istio-facts 5).

Pure: a policy list and a connection in, a verdict out. The reason texts are ztunnel's own, so
that dashboards and habits carry over (istio-facts 5.2, 5.9). Matching is a ladder::

    policy   ANY rule                      no rules: never matches
    rule     ALL clauses                   no clauses: matches everything
    clause   ANY match                     no matches: matches everything
    match    ALL families that are set     no family set: never matches
    family   (none given or ANY entry) and (no not_* entry)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final, TypeVar

from metalmesh.model.authorization import Action, Match, MatchKind, PolicyScope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from metalmesh.model.authorization import (
        Authorization,
        Clause,
        IPNetwork,
        Rule,
        ServiceAccountMatch,
        StringMatch,
    )
    from metalmesh.model.identity import SpiffeId
    from metalmesh.model.workload import IPAddress, Workload

E = TypeVar("E")
V = TypeVar("V")

REJECTION: Final = "connection closed due to policy rejection: "
POLICY_CHANGE: Final = "connection closed due to policy change"
NO_ALLOW_POLICIES: Final = "no allow policies, allow"
ALLOW_MATCH: Final = "allow policy match"
NONE_ALLOWED: Final = "allow policies exist, but none allowed"
DRY_RUN_DENY: Final = "dry-run: deny policy match"
DRY_RUN_ALLOW: Final = "dry-run: allow policy match"
DRY_RUN_NONE_ALLOWED: Final = "dry-run: no allow policies match"

_NO_FAMILY: Final = Match()


@dataclass(frozen=True, slots=True)
class Connection:
    """What a policy may look at; ``identity`` is None for plaintext.

    Through HBONE the destination is the workload's address and the port inside the tunnel.
    """

    source_ip: IPAddress
    destination_ip: IPAddress
    destination_port: int
    identity: SpiffeId | None = None
    #: the addresses as text; made once, like the hash, because a data worker looks the same
    #: connection up for every stream of a peer
    source: str = field(init=False, repr=False, compare=False)
    destination: str = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fields = (self.source_ip, self.destination_ip, self.destination_port, self.identity)
        object.__setattr__(self, "source", str(self.source_ip))
        object.__setattr__(self, "destination", str(self.destination_ip))
        object.__setattr__(self, "_hash", hash(fields))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Note:
    """Something the policies had to say, for the log."""

    text: str
    #: ``namespace/name``, "" when it is of no single one
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a connection may be, and why."""

    allowed: bool
    #: ztunnel's words
    reason: str
    #: ``namespace/name`` of the policy that decided, "" when no single one did
    policy: str = ""
    #: index of its rule that matched, -1 without one
    rule: int = -1
    #: what dry-run policies would have done
    notes: tuple[Note, ...] = ()

    @property
    def error(self) -> str:
        """Text of the access log's ``error`` for a refused connection; "" when allowed."""
        return "" if self.allowed else REJECTION + self.reason


def applicable(
    policies: Iterable[Authorization], workload: Workload
) -> tuple[tuple[Authorization, ...], tuple[str, ...]]:
    """Policies that decide connections to ``workload``, and listed keys that are not known.

    Global ones, those of its namespace, and the selector-scoped ones it lists; each group in
    order of its key, so that the deciding policy is the same on every node.
    """
    by_key: Mapping[str, Authorization] = {policy.key: policy for policy in policies}
    chosen = [
        policy
        for _, policy in sorted(by_key.items())
        if policy.scope is PolicyScope.GLOBAL
        or (policy.scope is PolicyScope.NAMESPACE and policy.namespace == workload.namespace)
    ]
    missing = []
    for key in workload.authorization_policies:
        listed = by_key.get(key)
        if listed is None:
            missing.append(key)
        elif listed not in chosen:
            chosen.append(listed)
    return tuple(chosen), tuple(missing)


def evaluate(authorizations: Sequence[Authorization], connection: Connection) -> Verdict:
    """Decide a connection to a workload to which all of ``authorizations`` apply."""
    connection = _canonical(connection)
    notes = [
        Note(DRY_RUN_DENY, policy.key)
        for policy in _select(authorizations, Action.DENY, dry_run=True)
        if _matching_rule(policy, connection) >= 0
    ]
    for policy in _select(authorizations, Action.DENY, dry_run=False):
        rule = _matching_rule(policy, connection)
        if rule >= 0:
            reason = f"explicitly denied by: {policy.key}"
            return Verdict(
                allowed=False, reason=reason, policy=policy.key, rule=rule, notes=tuple(notes)
            )
    allowing = _select(authorizations, Action.ALLOW, dry_run=False)
    notes += _dry_run_allow(authorizations, connection, enforced=bool(allowing))
    if not allowing:
        return Verdict(allowed=True, reason=NO_ALLOW_POLICIES, notes=tuple(notes))
    for policy in allowing:
        rule = _matching_rule(policy, connection)
        if rule >= 0:
            return Verdict(
                allowed=True, reason=ALLOW_MATCH, policy=policy.key, rule=rule, notes=tuple(notes)
            )
    return Verdict(allowed=False, reason=NONE_ALLOWED, notes=tuple(notes))


def _dry_run_allow(
    authorizations: Sequence[Authorization], connection: Connection, *, enforced: bool
) -> list[Note]:
    dry = _select(authorizations, Action.ALLOW, dry_run=True)
    found = [
        Note(DRY_RUN_ALLOW, policy.key) for policy in dry if _matching_rule(policy, connection) >= 0
    ]
    return found or ([Note(DRY_RUN_NONE_ALLOWED)] if dry and not enforced else [])


def _select(
    authorizations: Sequence[Authorization], action: Action, *, dry_run: bool
) -> list[Authorization]:
    return [p for p in authorizations if p.action is action and p.dry_run is dry_run]


def _matching_rule(policy: Authorization, connection: Connection) -> int:
    """Index of the first rule that matches, else -1."""
    for index, rule in enumerate(policy.rules):  # ANY rule
        if all(_clause_matches(clause, connection) for clause in rule):  # ALL clauses
            return index
    return -1


def unmet_clauses(rule: Rule, connection: Connection) -> list[Clause]:
    """What keeps a rule from matching."""
    connection = _canonical(connection)
    return [clause for clause in rule if not _clause_matches(clause, connection)]


def _clause_matches(clause: Clause, connection: Connection) -> bool:
    return not clause or any(_match_holds(match, connection) for match in clause)  # ANY match


def _match_holds(match: Match, connection: Connection) -> bool:
    """ALL families that are set must hold."""
    if match == _NO_FAMILY:
        return False
    identity, port = connection.identity, connection.destination_port
    principal = "" if identity is None else identity.principal
    namespace = "" if identity is None else identity.namespace
    return (
        _family(match.source_ips, match.not_source_ips, _within, connection.source_ip)
        and _family(
            match.destination_ips, match.not_destination_ips, _within, connection.destination_ip
        )
        and _family(match.destination_ports, match.not_destination_ports, int.__eq__, port)
        and _family(match.principals, match.not_principals, _string_holds, principal)
        and _family(match.namespaces, match.not_namespaces, _string_holds, namespace)
        and _family(match.service_accounts, match.not_service_accounts, _is_account, identity)
    )


def _family(
    wanted: Sequence[E], unwanted: Sequence[E], holds: Callable[[E, V], bool], value: V
) -> bool:
    """(none wanted or ANY wanted holds) and NONE of the unwanted holds."""
    if wanted and not any(holds(entry, value) for entry in wanted):
        return False
    return not any(holds(entry, value) for entry in unwanted)


def _within(network: IPNetwork, address: IPAddress) -> bool:
    return address.version == network.version and address in network


def _string_holds(match: StringMatch, value: str) -> bool:
    """An empty value (no identity) matches nothing, not even an empty prefix."""
    if not value:
        return False
    if match.kind is MatchKind.EXACT:
        return value == match.value
    if match.kind is MatchKind.PREFIX:
        return value.startswith(match.value)
    if match.kind is MatchKind.SUFFIX:
        return value.endswith(match.value)
    return True


def _is_account(match: ServiceAccountMatch, identity: SpiffeId | None) -> bool:
    return (
        identity is not None
        and identity.namespace == match.namespace
        and identity.service_account == match.service_account
    )


def _canonical(connection: Connection) -> Connection:
    """IPv4 addresses that came in IPv6 clothes are IPv4."""
    source = unmapped(connection.source_ip)
    destination = unmapped(connection.destination_ip)
    if source is connection.source_ip and destination is connection.destination_ip:
        return connection
    return Connection(source, destination, connection.destination_port, connection.identity)


def unmapped(address: IPAddress) -> IPAddress:
    """``::ffff:192.0.2.1`` as ``192.0.2.1``; anything else as it is."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
