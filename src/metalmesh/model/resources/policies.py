"""PeerAuthentication and AuthorizationPolicy (security.istio.io/v1)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from metalmesh.model.resources.meta import LabelSelector, parse_workload_selector
from metalmesh.model.resources.reader import PORT_MAX, read_network, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.resources.meta import Metadata
    from metalmesh.model.resources.reader import Reader

MODES: Final = ("UNSET", "DISABLE", "PERMISSIVE", "STRICT")
ACTIONS: Final = ("ALLOW", "DENY", "AUDIT", "CUSTOM")
#: fields of a source and of an operation; each also exists as ``notX``
SOURCE_FIELDS: Final = (
    "principals", "requestPrincipals", "namespaces", "ipBlocks", "remoteIpBlocks",
    "serviceAccounts", "trustDomains",
)  # fmt: skip
OPERATION_FIELDS: Final = ("hosts", "ports", "methods", "paths")
_IP_FIELDS: Final = ("ipBlocks", "remoteIpBlocks")


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerAuthentication:
    """Which connections a workload accepts: mutual TLS only, or plaintext too."""

    meta: Metadata
    selector: LabelSelector | None = None
    mode: str = "UNSET"
    #: target port to mode
    port_modes: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Condition:
    """One ``when`` entry."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


#: a source's or operation's non-empty lists by field name, ``notX`` included
Fields = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class AuthorizationRule:
    """Sources AND operations AND conditions; None where the list is absent."""

    sources: tuple[Fields, ...] | None = None
    operations: tuple[Fields, ...] | None = None
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorizationPolicy:
    """Who may connect; rules are alternatives."""

    meta: Metadata
    action: str = "ALLOW"
    selector: LabelSelector | None = None
    #: ``kind/name`` of what it is attached to; such a policy is a waypoint's
    target_refs: tuple[str, ...] = ()
    rules: tuple[AuthorizationRule, ...] = ()


# --- PeerAuthentication ----------------------------------------------------------------------


def parse_peer_authentication(reader: Reader, meta: Metadata) -> PeerAuthentication:
    """Read a PeerAuthentication."""
    reader.ignore("status")
    with reader.child("spec") as spec:
        selector = parse_workload_selector(spec, "selector")
        port_modes = {}
        with spec.child("portLevelMtls") as ports:
            for name in ports.names():
                port = _port_key(ports, name)
                port_modes[port] = _mode(ports, name)
            if port_modes and (selector is None or selector.empty):
                spec.fail("portLevelMtls", "needs a selector with matchLabels; add one")
        return PeerAuthentication(
            meta=meta,
            selector=selector,
            mode=_mode(spec, "mtls"),
            port_modes=MappingProxyType(port_modes),
        )


def _port_key(ports: Reader, name: str) -> int:
    if name.isascii() and name.isdigit() and 1 <= int(name[:6]) <= PORT_MAX:
        return int(name)
    ports.fail(name, f"must be a port, 1 to {PORT_MAX}")
    return 0


def _mode(reader: Reader, name: str) -> str:
    with reader.child(name) as mtls:
        return mtls.choice("mode", MODES, "UNSET")


# --- AuthorizationPolicy ---------------------------------------------------------------------


def parse_authorization_policy(reader: Reader, meta: Metadata) -> AuthorizationPolicy:
    """Read an AuthorizationPolicy; what a ztunnel supports of it is decided in translation."""
    reader.ignore("status")
    with reader.child("spec") as spec:
        selector = parse_workload_selector(spec, "selector")
        targets = _targets(spec)
        if targets and selector is not None:
            spec.fail("selector", "cannot be combined with targetRefs; keep one of the two")
        with spec.child("provider") as provider:
            provider.string("name")
        return AuthorizationPolicy(
            meta=meta,
            action=spec.choice("action", ACTIONS, "ALLOW"),
            selector=selector,
            target_refs=targets,
            rules=tuple(map(_rule, spec.children("rules"))),
        )


def _targets(spec: Reader) -> tuple[str, ...]:
    readers = spec.children("targetRefs")
    if spec.has("targetRef"):
        readers.append(spec.child("targetRef"))
    targets = []
    for reader in readers:
        with reader:
            reader.string("group")
            reader.string("namespace")
            targets.append(f"{reader.required('kind')}/{reader.required('name')}")
    return tuple(targets)


def _rule(reader: Reader) -> AuthorizationRule:
    with reader:
        sources = _alternatives(reader, "from", "source", SOURCE_FIELDS)
        operations = _alternatives(reader, "to", "operation", OPERATION_FIELDS)
        conditions = tuple(map(_condition, reader.children("when")))
    return AuthorizationRule(sources, operations, conditions)


def _alternatives(
    reader: Reader, name: str, inner: str, fields: tuple[str, ...]
) -> tuple[Fields, ...] | None:
    if not reader.has(name):
        return None
    found = []
    for item in reader.children(name):
        with item:
            if not item.has(inner):
                item.fail(inner, "is required")
            with item.child(inner) as part:
                found.append(_lists(part, fields))
    if not found:
        reader.fail(name, f"must not be empty; remove it to match any {inner}")
    return tuple(found)


def _lists(part: Reader, fields: tuple[str, ...]) -> Fields:
    lists: list[tuple[str, tuple[str, ...]]] = []
    for field in fields:
        for name in (field, f"not{field[0].upper()}{field[1:]}"):
            values = part.strings(name)
            _check_values(part, name, field, values)
            if values:
                lists.append((name, values))
    if not lists:
        part.fail("", "must have at least one field")
    given = {name for name, _ in lists}
    if given & {"serviceAccounts", "notServiceAccounts"} and given & {
        "principals", "notPrincipals", "namespaces", "notNamespaces",
    }:  # fmt: skip
        part.fail("serviceAccounts", "cannot be combined with principals or namespaces")
    return tuple(lists)


def _check_values(part: Reader, name: str, field: str, values: tuple[str, ...]) -> None:
    for index, value in enumerate(values):
        where = f"{name}[{index}]"
        if not value:
            part.fail(where, "must not be empty")
        elif field == "ports":
            _check_port(part, where, value)
        elif field in _IP_FIELDS:
            read_network(part, where, value)
        elif field == "serviceAccounts":
            if value.count("/") > 1 or "*" in value or value.startswith("/"):
                part.fail(where, f"{shown(value)} must be NAME or NAMESPACE/NAME, no wildcard")
        elif field in ("principals", "namespaces"):
            _check_wildcard(part, where, value)
        elif field == "trustDomains":
            _check_trust_domain(part, where, value)


def _check_port(reader: Reader, where: str, value: str) -> None:
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:6]) <= PORT_MAX):
        reader.fail(where, f"{shown(value)} must be a port, 1 to {PORT_MAX}")


def _check_wildcard(reader: Reader, where: str, value: str) -> None:
    """One ``*`` at the start or at the end: anything else never matches what it seems to."""
    if "*" in value[1:-1] or (len(value) > 1 and value[0] == value[-1] == "*"):
        reader.fail(where, f"{shown(value)} may have one * only, at its start or end")


def _check_trust_domain(reader: Reader, where: str, value: str) -> None:
    """What a ztunnel can compare: a principal begins with its trust domain."""
    if "*" in value[:-1] or "/" in value:
        text = "must be a trust domain, the beginning of one and *, or *"
        reader.fail(where, f"{shown(value)} {text}")


#: ``when`` keys whose values are addresses
_IP_KEYS: Final = ("source.ip", "remote.ip", "destination.ip")
#: every attribute that Istio knows (its reference, "Authorization Policy Conditions")
_CONDITION_KEYS: Final = (
    *_IP_KEYS,
    "source.namespace", "source.principal", "source.serviceAccount", "destination.port",
    "request.auth.principal", "request.auth.audiences", "request.auth.presenter",
    "connection.sni",
)  # fmt: skip
_CONDITION_PREFIXES: Final = (
    "request.headers[", "request.auth.claims[", "experimental.envoy.filters.",
)  # fmt: skip


def _condition(reader: Reader) -> Condition:
    with reader:
        key = reader.required("key")
        if key and key not in _CONDITION_KEYS and not key.startswith(_CONDITION_PREFIXES):
            close = difflib.get_close_matches(key, _CONDITION_KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else "remove the condition"
            reader.fail("key", f"unknown attribute {shown(key)}; {hint}")
        values, not_values = reader.strings("values"), reader.strings("notValues")
        if not values and not not_values:
            reader.fail("values", "or notValues must be given")
        for name, given in (("values", values), ("notValues", not_values)):
            for index, value in enumerate(given):
                _check_condition(reader, key, f"{name}[{index}]", value)
    return Condition(key, values, not_values)


def _check_condition(reader: Reader, key: str, where: str, value: str) -> None:
    if not value:
        reader.fail(where, "must not be empty")
    elif key in _IP_KEYS:
        read_network(reader, where, value)
    elif key == "destination.port":
        _check_port(reader, where, value)
    elif key in ("source.namespace", "source.principal"):
        _check_wildcard(reader, where, value)
