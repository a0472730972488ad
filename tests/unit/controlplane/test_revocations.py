"""Void tokens of nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalmesh.controlplane.join_tokens import JoinTokens
from metalmesh.controlplane.revocations import FILE_NAME, Revocations
from metalmesh.errors import TokenError
from metalmesh.pki.tokens import NodeToken

NOW = 1_800_000_000


def _token(node: str, issued_at: int) -> NodeToken:
    return NodeToken(node, "x", issued_at, issued_at + 600)


def test_tokens_issued_until_the_revocation_are_void(tmp_path: Path) -> None:
    running = Revocations(tmp_path)
    running.check(_token("node1", NOW))
    Revocations(tmp_path).revoke("node1", NOW)
    Revocations(tmp_path).revoke("node2", NOW + 5)
    for issued_at in (NOW - 10, NOW):
        with pytest.raises(TokenError, match="tokens of node node1 were revoked; join again"):
            running.check(_token("node1", issued_at))
    running.check(_token("node1", NOW + 1))
    running.check(_token("node3", NOW))


@pytest.mark.parametrize("text", ["{", "[]", '{"node1": "x"}', '{"node1": true}'])
def test_damaged_file_voids_every_token(tmp_path: Path, text: str) -> None:
    """Nobody can tell who was revoked: fail closed."""
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(TokenError, match="no token is believed"):
        Revocations(tmp_path).check(_token("node1", NOW))


def test_bad_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="node name"):
        Revocations(tmp_path).revoke("Node 1", NOW)


def test_join_tokens_beside_it_are_not_disturbed(tmp_path: Path) -> None:
    Revocations(tmp_path).revoke("node1", NOW)
    tokens = JoinTokens(tmp_path)
    tokens.create("node1", NOW, 60)
    assert len(tokens.list_unused()) == 1
    tokens.sweep(NOW + 10**6)
    assert (tmp_path / FILE_NAME).exists()
