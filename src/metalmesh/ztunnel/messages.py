"""What a ztunnel's main process and its data workers say to each other.

Main holds all state and takes every routing decision; workers hold local workloads, cached
routes, certificates and compiled inbound policy, and do the I/O. Every message is a frozen
dataclass; its wire form is a JSON object whose ``type`` is the class name in snake case. The
transport (SEQPACKET, descriptors, long messages) is :mod:`metalmesh.ztunnel.ipc`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Final, get_origin, get_type_hints

from metalmesh.errors import ProtocolError

#: keys of a workload's labels in log lines and metrics; "" means unknown
LABEL_KEYS: Final = (
    "name",
    "workload",
    "namespace",
    "principal",
    "app",
    "version",
    "canonical_service",
    "canonical_revision",
    "cluster",
    "region",
    "zone",
    "node",
)

Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class ServiceRef:
    """The service a route was chosen for."""

    hostname: str
    name: str
    namespace: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One place a route may lead to."""

    #: ``ip:port`` to dial (``[ip]:port`` for IPv6): port 15008 for HBONE
    address: str
    #: ``:authority`` of the CONNECT; "" without a tunnel
    authority: str = ""
    #: SPIFFE URIs the server may present; any one is enough
    identities: tuple[str, ...] = ()
    weight: int = 1
    #: labels of the destination workload (LABEL_KEYS)
    workload: Labels = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Main's decision for connections to one address and port."""

    #: hbone | tcp | mixed (endpoints of both sorts) | passthrough | error
    kind: str
    error: str = ""
    service: ServiceRef | None = None
    endpoints: tuple[Endpoint, ...] = ()
    cacheable: bool = True


# --- main -> worker --------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True, slots=True)
class Configure:
    """First message: settings of the process."""

    log_level: str = "info"
    log_format: str = "plain"  # plain | json
    access_log: bool = True
    #: level of what policies had to say about a connection: debug or info
    rbac_level: str = "debug"
    keylog_path: str = ""
    #: this mesh's own cluster, the value of ``cluster`` labels of local workloads
    cluster_id: str = ""
    #: trust domains of peers that are accepted besides that of our own certificate
    trust_domains: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class AddWorkload:
    """Serve a local workload. Descriptors: outbound, plaintext, HBONE listener, netns."""

    uid: str
    name: str
    namespace: str
    service_account: str
    #: SPIFFE URI, "" until the control plane has told us
    identity: str = ""
    addresses: tuple[str, ...] = ()
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateWorkload:
    """A local workload as it is now; listeners stay."""

    uid: str
    name: str
    namespace: str
    service_account: str
    identity: str = ""
    addresses: tuple[str, ...] = ()
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveWorkload:
    """Close everything of a workload at once."""

    uid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """A certificate for new connections; open ones keep theirs."""

    identity: str
    chain_pem: str
    key_pem: str = field(repr=False)
    roots_pem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Revocations:
    """Certificates that peers must not use; connections of those who did end at once."""

    #: see :mod:`metalmesh.pki.der`
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateUnavailable:
    """No certificate can be had now; connections waiting for it fail."""

    identity: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """Everything that decides inbound connections of a workload; replaces what was."""

    uid: str
    #: Authorization.to_dict() of every policy that applies, in order of evaluation
    authorizations: tuple[dict[str, Any], ...] = ()
    #: CompiledNetworkPolicy as dicts, those that select this workload
    network_policies: tuple[dict[str, Any], ...] = ()
    inner_enforcement: bool = True
    #: keys of policies the workload lists but main does not know (yet). While there are any, new
    #: inbound connections wait (as they do before the first Policies of a workload) for
    #: WORKLOAD_INFO_TIMEOUT_SECONDS at most and are then denied; open ones stay as they are.
    missing: tuple[str, ...] = ()
    #: whether they decide open connections anew, too
    reevaluate: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteReply:
    """Answer to :class:`Resolve`."""

    request_id: int
    route: Route


@dataclass(frozen=True, kw_only=True, slots=True)
class InvalidateRoutes:
    """Cached routes and sources are void; ask again for new connections."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReply:
    """Answer to :class:`LookupSource`; ``None`` when no workload has the address."""

    request_id: int
    labels: Labels | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Collect:
    """Ask for metrics or connections; ``what`` is ``metrics`` or ``connections``."""

    request_id: int
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drain:
    """Stop accepting, GOAWAY, finish streams until the deadline (``inf``: none), then exit."""

    deadline_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SetLogLevel:
    """Change the level of the access log and of the worker's own log."""

    level: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ping:
    """Are you alive? The loop answers :class:`Pong` in its next turn."""

    request_id: int


# --- worker -> main --------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The loop runs."""

    pid: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """AddWorkload was carried out, or why not."""

    uid: str
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeedCertificate:
    """A connection waits for a certificate of this identity."""

    identity: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolve:
    """Where does a connection of workload ``uid`` to ``address:port`` go?"""

    request_id: int
    uid: str
    address: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupSource:
    """Labels of the workload that has this address, for logs and metrics."""

    request_id: int
    address: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsReply:
    """Counters since the worker started: ``[name, {label: value}, number]`` each."""

    request_id: int
    series: tuple[tuple[str, Labels, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionsReply:
    """Open connections: uid, direction, src, original_dst, actual_dst, protocol each."""

    request_id: int
    connections: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pong:
    """Answer to :class:`Ping`."""

    request_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Drained:
    """All connections have ended (or the deadline passed); the worker exits now."""


# --- main -> main after it (metalmesh.ztunnel.handover); Certificate belongs here, too ----------
@dataclass(frozen=True, kw_only=True, slots=True)
class Inherit:
    """A descriptor, by the name it has in systemd's fd store."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Begin:
    """That was everything: start serving."""

    #: what is served, as it is saved (metalmesh.ztunnel.saved)
    workloads: tuple[tuple[Any, ...], ...] = ()
    #: variables with which systemd is spoken to
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The successor serves beside the incumbent, which can go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeOver:
    """The successor is the main process from now on."""


Message = (
    Configure | AddWorkload | UpdateWorkload | RemoveWorkload | Certificate
    | Revocations | CertificateUnavailable | Policies | RouteReply | InvalidateRoutes | SourceReply
    | Collect | Drain | SetLogLevel | Ping | Ready | Ack | NeedCertificate | Resolve | LookupSource
    | MetricsReply | ConnectionsReply | Pong | Drained | Inherit | Begin | Prepared | TakeOver
)  # fmt: skip


def _wire_name(cls: type) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


_CLASSES: Final[dict[str, type]] = {_wire_name(cls): cls for cls in Message.__args__}
_NAMES: Final[dict[type, str]] = {cls: name for name, cls in _CLASSES.items()}


def encode(message: Message) -> bytes:
    """The JSON object of a message."""
    body = {"type": _NAMES[type(message)]}
    body.update((f.name, _plain(getattr(message, f.name))) for f in fields(message))
    return json.dumps(body, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, (Route, Endpoint, ServiceRef)):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def decode(data: bytes) -> Message:
    """Parse one message; raise :class:`ProtocolError` naming what is wrong with it."""
    try:
        body = json.loads(data)
        kind = body.pop("type")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ProtocolError(f"worker message is not a JSON object with a type: {error}") from error
    cls = _CLASSES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ProtocolError(f"worker message {kind!r}: unknown type; main and worker must match")
    message: Message = _build(cls, body, str(kind))
    return message


def _build(cls: type, body: Any, where: str) -> Any:
    if not isinstance(body, dict):
        raise ProtocolError(f"worker message {where}: expected an object, got {body!r:.80}")
    hints = _hints(cls)
    unknown = body.keys() - hints.keys()
    if unknown:
        raise ProtocolError(f"worker message {where}: unknown field {sorted(unknown)[0]!r}")
    values = {name: _typed(hints[name], value, f"{where}.{name}") for name, value in body.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ProtocolError(f"worker message {where}: {error}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


_NESTED: Final[dict[Any, type]] = {Route: Route, ServiceRef | None: ServiceRef}


def _typed(hint: Any, value: Any, where: str) -> Any:
    nested = _NESTED.get(hint)
    if nested is not None:
        return None if value is None else _build(nested, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ProtocolError(f"worker message {where}: expected a list, got {value!r:.80}")
        if hint == tuple[Endpoint, ...]:
            return tuple(_build(Endpoint, item, where) for item in value)
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    simple = hint if isinstance(hint, type) and hint in (str, int, bool, float) else None
    if simple is not None and not isinstance(value, (int, float) if simple is float else simple):
        raise ProtocolError(f"worker message {where}: expected {simple.__name__}, got {value!r}")
    return value
