"""Join tokens and node tokens: what they prove and what they do not."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

import base64
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import TokenError
from metalmesh.pki.keys import make_key
from metalmesh.pki.tokens import (
    LEEWAY_SECONDS,
    JoinRecord,
    NodeToken,
    check_join_token,
    issue_node_token,
    join_token_id,
    make_join_token,
    parse_join_record,
    verify_node_token,
)

NOW = 1_800_000_000
ID = "0123456789abcdef"
KEY = make_key()
PUBLIC = KEY.public_key()


# --- join tokens -----------------------------------------------------------------------------


def _join(ttl_seconds: int = 3600) -> tuple[str, JoinRecord]:
    return make_join_token(ID, "s3cret", "node1", NOW, ttl_seconds)


def test_join_token_admits_its_node_until_it_expires() -> None:
    token, record = _join()
    check_join_token(token, record, "node1", NOW)
    check_join_token(token, record, "node1", NOW + 3599)
    with pytest.raises(TokenError, match="expired 0 s ago; mint a new one"):
        check_join_token(token, record, "node1", NOW + 3600)


def test_join_token_of_another_node_or_secret_is_refused() -> None:
    token, record = _join()
    with pytest.raises(TokenError, match="bound to node 'node1', not 'node2'"):
        check_join_token(token, record, "node2", NOW)
    with pytest.raises(TokenError, match="wrong secret"):
        check_join_token(f"{ID}.guess", record, "node1", NOW)


def test_record_holds_no_secret() -> None:
    token, record = _join()
    assert token == f"{ID}.s3cret"
    assert "s3cret" not in json.dumps(record.to_dict())
    assert parse_join_record(record.to_dict(), "f") == record


@pytest.mark.parametrize(
    "token",
    ["", ".", "abc", f"{ID}", f"{ID}.", "../../etc/passwd.x", f"{ID}/.x", f"{ID}\n.x", "A" * 16 + ".x",
     f"{ID}." + "x" * 5000],
)  # fmt: skip
def test_malformed_join_token_is_refused(token: str) -> None:
    """The id becomes part of a path."""
    with pytest.raises(TokenError, match="malformed"):
        join_token_id(token)


@pytest.mark.parametrize("node", ["", "Node", "a b", "../x", "a" * 254, "-a", "a/b", "a\n"])
def test_bad_node_name_gets_no_token(node: str) -> None:
    with pytest.raises(TokenError, match="node name"):
        make_join_token(ID, "s", node, NOW)


@pytest.mark.parametrize("ttl", [0, -1, 3601])
def test_join_token_lives_an_hour_at_most(ttl: int) -> None:
    with pytest.raises(TokenError, match="lives 1 to 3600 s"):
        make_join_token(ID, "s", "node1", NOW, ttl)


@pytest.mark.parametrize(
    "data", [None, [], {}, {"id": ID}, {**_join()[1].to_dict(), "node": 5}, {**_join()[1].to_dict(), "x": 1}]
)  # fmt: skip
def test_damaged_record_is_an_error_naming_the_file(data: object) -> None:
    with pytest.raises(TokenError, match=r"^f\.json: "):
        parse_join_record(data, "f.json")


# --- node tokens -----------------------------------------------------------------------------


def test_node_token_proves_its_node_until_it_expires() -> None:
    token = issue_node_token(KEY, "node1", "jti", NOW, 600)
    assert verify_node_token(PUBLIC, token, NOW) == NodeToken("node1", "jti", NOW, NOW + 600)
    verify_node_token(PUBLIC, token, NOW + 600 + LEEWAY_SECONDS - 1)
    with pytest.raises(TokenError, match="of node1 expired 30 s ago; join again"):
        verify_node_token(PUBLIC, token, NOW + 600 + LEEWAY_SECONDS)
    with pytest.raises(TokenError, match="issued 31 s in the future"):
        verify_node_token(PUBLIC, token, NOW - LEEWAY_SECONDS - 1)


CLAIMS = {
    "iss": "metalmesh", "sub": "node:node1", "aud": "istio-ca", "iat": NOW, "exp": NOW + 60, "jti": "x",
}  # fmt: skip


def _signed(**changes: object) -> str:
    claims = {key: value for key, value in {**CLAIMS, **changes}.items() if value is not ...}
    return jwt.encode(claims, KEY, algorithm="ES256")


def _encoded(*parts: object) -> str:
    texts = (json.dumps(part).encode() for part in parts)
    return ".".join(base64.urlsafe_b64encode(text).rstrip(b"=").decode() for text in texts)


def _unsigned() -> str:
    return _encoded({"alg": "none", "typ": "JWT"}, CLAIMS) + "."


def _symmetric() -> str:
    """The classic confusion: the public key as HMAC secret."""
    secret = PUBLIC.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    text = _encoded({"alg": "HS256", "typ": "JWT"}, CLAIMS)
    signature = hmac.digest(secret, text.encode(), "sha256")
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


FORGED = {
    "empty": lambda: "",
    "text": lambda: "hello",
    "too long": lambda: "x" * 5000,
    "unsigned": _unsigned,
    "symmetric": _symmetric,
    "another key": lambda: jwt.encode(CLAIMS, make_key(), algorithm="ES256"),
    "another issuer": lambda: _signed(iss="evil"),
    "another audience": lambda: _signed(aud="other"),
    "no audience": lambda: _signed(aud=...),
    "no expiry": lambda: _signed(exp=...),
    "no id": lambda: _signed(jti=...),
    "text as expiry": lambda: _signed(exp="never"),
    "huge float as expiry": lambda: _signed(exp=1e300),
    "true as expiry": lambda: _signed(exp=True),
    "not a node": lambda: _signed(sub="system:masters"),
    "bad node": lambda: _signed(sub="node:../x"),
    "no subject": lambda: _signed(sub=...),
    "tampered": lambda: _signed()[:-6] + "AAAAAA",
}


@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED)
def test_forged_node_token_is_refused(make: object) -> None:
    with pytest.raises(TokenError):
        verify_node_token(PUBLIC, make(), NOW)


@given(st.text(max_size=100))
def test_only_token_errors_escape(token: str) -> None:
    with pytest.raises(TokenError):
        verify_node_token(PUBLIC, token, NOW)
