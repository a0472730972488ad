"""Join tokens and node tokens.

A **join token** ``ID.SECRET`` lets one node join once within an hour; the control plane keeps only
the hash of the secret. A **node token** is a JWT (RFC 7519, ES256) that names the node; the node
renews it. Instants are unix seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import jwt

from metalmesh.constants import JOIN_TOKEN_TTL_SECONDS, TOKEN_AUDIENCE
from metalmesh.errors import TokenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

ISSUER: Final = "metalmesh"
ALGORITHM: Final = "ES256"
#: clocks of control plane replicas may differ this much
LEEWAY_SECONDS: Final = 30
#: our tokens have about 300 bytes; longer ones are not ours
TOKEN_MAX_BYTES: Final = 4096
_SUBJECT_PREFIX: Final = "node:"
_ID: Final = re.compile(r"[0-9a-f]{16}\Z")
#: Kubernetes' node names: DNS subdomains (RFC 1123)
_NODE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")


def check_node_name(node: str) -> str:
    """Return a valid node name; raise :class:`TokenError` otherwise."""
    if not _NODE_NAME.match(node):
        raise TokenError(
            f"node name {node!r} must be lower-case letters, digits, dots and dashes, "
            "at most 253, as in DNS"
        )
    return node


# --- join tokens -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinRecord:
    """What the control plane keeps of a join token."""

    id: str
    node: str
    secret_sha256: str
    created_at: int
    expires_at: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)


def make_join_token(
    token_id: str, secret: str, node: str, now: int, ttl_seconds: int = JOIN_TOKEN_TTL_SECONDS
) -> tuple[str, JoinRecord]:
    """The token to hand to the node and the record to keep; id: 16 hex digits."""
    if not 0 < ttl_seconds <= JOIN_TOKEN_TTL_SECONDS:
        raise TokenError(f"a join token lives 1 to {JOIN_TOKEN_TTL_SECONDS} s, not {ttl_seconds}")
    assert _ID.match(token_id)
    record = JoinRecord(
        id=token_id,
        node=check_node_name(node),
        secret_sha256=_hash(secret),
        created_at=now,
        expires_at=now + ttl_seconds,
    )
    return f"{token_id}.{secret}", record


def parse_join_record(data: object, source: str) -> JoinRecord:
    """Read a record; ``source`` is the file it came from."""
    fields = {"id": str, "node": str, "secret_sha256": str, "created_at": int, "expires_at": int}
    if not isinstance(data, dict) or set(data) != set(fields):
        raise TokenError(f"{source}: a join token record has the fields {', '.join(fields)}")
    for name, kind in fields.items():
        if not isinstance(data[name], kind):
            raise TokenError(f"{source}: {name} must be of type {kind.__name__}")
    return JoinRecord(**data)


def join_token_id(token: str) -> str:
    """The id of a token; it is safe to be part of a file name."""
    token_id, _, secret = token.partition(".")
    if len(token) > TOKEN_MAX_BYTES or not secret or not _ID.match(token_id):
        raise TokenError("join token is malformed; it has the form ID.SECRET")
    return token_id


def check_join_token(token: str, record: JoinRecord, node: str, now: int) -> None:
    """Raise :class:`TokenError` unless ``token`` lets ``node`` join now."""
    secret = token.partition(".")[2]
    # every comparison is made, so that the time taken tells nothing about the secret
    genuine = hmac.compare_digest(_hash(secret), record.secret_sha256)
    bound = hmac.compare_digest(node.encode(), record.node.encode())
    if not genuine:
        raise TokenError(f"join token {record.id}: wrong secret")
    if not bound:
        raise TokenError(f"join token {record.id} is bound to node {record.node!r}, not {node!r}")
    if now >= record.expires_at:
        raise TokenError(
            f"join token {record.id} expired {now - record.expires_at} s ago; mint a new one"
        )


def _hash(secret: str) -> str:
    """A plain hash is enough: the secret is 256 random bits, not a password."""
    return hashlib.sha256(secret.encode()).hexdigest()


# --- node tokens -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeToken:
    """A verified node token."""

    node: str
    token_id: str
    issued_at: int
    expires_at: int


def issue_node_token(
    key: EllipticCurvePrivateKey, node: str, token_id: str, now: int, ttl_seconds: int
) -> str:
    """Sign a token that proves "I am ``node``" for ``ttl_seconds``."""
    claims = {
        "iss": ISSUER,
        "sub": _SUBJECT_PREFIX + check_node_name(node),
        "aud": TOKEN_AUDIENCE,
        "iat": now,
        "exp": now + ttl_seconds,
        "jti": token_id,
    }
    return jwt.encode(claims, key, algorithm=ALGORITHM)


def verify_node_token(key: EllipticCurvePublicKey, token: str, now: int) -> NodeToken:
    """Verify signature, issuer, audience, times and subject of a node token."""
    if len(token) > TOKEN_MAX_BYTES:
        raise TokenError(f"node token exceeds {TOKEN_MAX_BYTES} bytes")
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=TOKEN_AUDIENCE,
            issuer=ISSUER,
            # PyJWT compares with its own clock; ours is an argument
            options={
                "require": ["iss", "sub", "aud", "iat", "exp", "jti"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except jwt.PyJWTError as error:
        raise TokenError(f"node token refused: {error}") from error
    return _check_claims(claims, now)


def _check_claims(claims: Mapping[str, Any], now: int) -> NodeToken:
    issued_at, expires_at = claims["iat"], claims["exp"]
    subject, token_id = claims["sub"], claims["jti"]
    if not all(type(value) is int for value in (issued_at, expires_at)):
        raise TokenError("node token refused: iat and exp must be integers")
    if not isinstance(subject, str) or not isinstance(token_id, str):
        raise TokenError("node token refused: sub and jti must be strings")
    if not subject.startswith(_SUBJECT_PREFIX):
        raise TokenError(f"node token refused: subject {subject!r} is not node:NAME")
    node = check_node_name(subject.removeprefix(_SUBJECT_PREFIX))
    if now >= expires_at + LEEWAY_SECONDS:
        raise TokenError(f"node token of {node} expired {now - expires_at} s ago; join again")
    if issued_at > now + LEEWAY_SECONDS:
        raise TokenError(f"node token of {node} was issued {issued_at - now} s in the future")
    return NodeToken(node, token_id, issued_at, expires_at)
