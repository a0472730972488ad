"""Codec of ``istio.security.Authorization``: L4 policies (istio-facts 3.4).

Stricter than ztunnel, which drops address entries it cannot parse and so may widen a match: here
such a policy is refused as a whole and the receiver keeps the last good one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import ProtocolError
from metalmesh.model.authorization import (
    Action,
    Authorization,
    Clause,
    Match,
    MatchKind,
    PolicyScope,
    Rule,
    ServiceAccountMatch,
    StringMatch,
)
from metalmesh.proto import authorization_pb2 as pb
from metalmesh.xds.fields import parse_message, read_enum, read_network, read_port, required

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metalmesh.model.authorization import IPNetwork

_SCOPES: Final = {
    pb.GLOBAL: PolicyScope.GLOBAL,
    pb.NAMESPACE: PolicyScope.NAMESPACE,
    pb.WORKLOAD_SELECTOR: PolicyScope.WORKLOAD_SELECTOR,
}
_ACTIONS: Final = {pb.ALLOW: Action.ALLOW, pb.DENY: Action.DENY}
_SCOPE_NUMBERS: Final[dict[PolicyScope, Any]] = {scope: n for n, scope in _SCOPES.items()}
_ACTION_NUMBERS: Final[dict[Action, Any]] = {action: n for n, action in _ACTIONS.items()}
_STRINGS: Final = ("namespaces", "not_namespaces", "principals", "not_principals")
_NETWORKS: Final = ("source_ips", "not_source_ips", "destination_ips", "not_destination_ips")
_PORTS: Final = ("destination_ports", "not_destination_ports")
_ACCOUNTS: Final = ("service_accounts", "not_service_accounts")
_KINDS: Final = {
    "exact": MatchKind.EXACT,
    "prefix": MatchKind.PREFIX,
    "suffix": MatchKind.SUFFIX,
    "presence": MatchKind.PRESENCE,
}


def encode_authorization(policy: Authorization) -> bytes:
    """Encode one policy; equal policies give equal bytes."""
    message = pb.Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=_SCOPE_NUMBERS[policy.scope],
        action=_ACTION_NUMBERS[policy.action],
        dry_run=policy.dry_run,
        rules=[
            pb.Rule(
                clauses=[
                    pb.Clause(matches=[_encode_match(match) for match in clause]) for clause in rule
                ]
            )
            for rule in policy.rules
        ],
    )
    return message.SerializeToString(deterministic=True)


def decode_authorization(data: bytes, name: str) -> Authorization:
    """Decode one policy; ``name`` is the resource's name in the response, ``namespace/name``."""
    try:
        message = parse_message(pb.Authorization, data)
        return Authorization(
            name=required(message.name, "name"),
            namespace=message.namespace,
            scope=read_enum(message.scope, _SCOPES, "scope"),
            action=read_enum(message.action, _ACTIONS, "action"),
            rules=tuple(_rule(rule, f"rules[{n}]") for n, rule in enumerate(message.rules)),
            dry_run=message.dry_run,
        )
    except ProtocolError as error:
        raise ProtocolError(f"{name}: {error}") from error


def _rule(message: pb.Rule, where: str) -> Rule:
    return tuple(
        _clause(clause, f"{where}.clauses[{n}]") for n, clause in enumerate(message.clauses)
    )


def _clause(message: pb.Clause, where: str) -> Clause:
    return tuple(_match(match, f"{where}.matches[{n}]") for n, match in enumerate(message.matches))


def _encode_match(match: Match) -> pb.Match:
    message = pb.Match(
        destination_ports=match.destination_ports,
        not_destination_ports=match.not_destination_ports,
    )
    for field in _STRINGS:
        getattr(message, field).extend(map(_encode_string, getattr(match, field)))
    for field in _NETWORKS:
        getattr(message, field).extend(map(_encode_network, getattr(match, field)))
    for field in _ACCOUNTS:
        getattr(message, field).extend(
            pb.ServiceAccountMatch(namespace=item.namespace, serviceAccount=item.service_account)
            for item in getattr(match, field)
        )
    return message


def _match(message: pb.Match, where: str) -> Match:
    values: dict[str, Any] = {}
    for field in _STRINGS:
        values[field] = _strings(getattr(message, field), f"{where}.{field}")
    for field in _NETWORKS:
        values[field] = _networks(getattr(message, field), f"{where}.{field}")
    for field in _PORTS:
        ports = getattr(message, field)
        values[field] = tuple(read_port(port, f"{where}.{field}") for port in ports)
    for field in _ACCOUNTS:
        values[field] = tuple(
            ServiceAccountMatch(item.namespace, item.serviceAccount)
            for item in getattr(message, field)
        )
    return Match(**values)


def _encode_string(match: StringMatch) -> pb.StringMatch:
    message = pb.StringMatch()
    if match.kind is MatchKind.PRESENCE:
        message.presence.SetInParent()
    else:
        setattr(message, match.kind.name.lower(), match.value)
    return message


def _strings(messages: Iterable[pb.StringMatch], where: str) -> tuple[StringMatch, ...]:
    found = []
    for message in messages:
        kind = message.WhichOneof("match_type")
        if kind is None:
            raise ProtocolError(f"{where}: a string match without exact, prefix, suffix, presence")
        value = "" if kind == "presence" else getattr(message, kind)
        found.append(StringMatch(_KINDS[kind], value))
    return tuple(found)


def _encode_network(network: IPNetwork) -> pb.Address:
    return pb.Address(address=network.network_address.packed, length=network.prefixlen)


def _networks(messages: Iterable[pb.Address], where: str) -> tuple[IPNetwork, ...]:
    return tuple(read_network(message.address, message.length, where) for message in messages)
