"""Join tokens are used once, by their node, in time."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from metalmesh.controlplane.join_tokens import KEEP_SECONDS, JoinTokens
from metalmesh.errors import StoreError, TokenError

NOW = 1_800_000_000


@pytest.fixture
def tokens(tmp_path: Path) -> JoinTokens:
    return JoinTokens(tmp_path / "tokens")


def test_token_is_redeemed_once(tokens: JoinTokens) -> None:
    token = tokens.create("node1", NOW, 3600)
    assert tokens.redeem(token, "node1", NOW + 5).node == "node1"
    with pytest.raises(TokenError, match="was used already"):
        tokens.redeem(token, "node1", NOW + 6)


def test_failed_attempts_do_not_use_it_up(tokens: JoinTokens) -> None:
    token = tokens.create("node1", NOW, 3600)
    token_id = token.split(".")[0]
    for wrong, node in ((f"{token_id}.guess", "node1"), (token, "node2")):
        with pytest.raises(TokenError):
            tokens.redeem(wrong, node, NOW)
    tokens.redeem(token, "node1", NOW)


def test_expired_unknown_and_revoked_tokens_are_refused(tokens: JoinTokens) -> None:
    token = tokens.create("node1", NOW, 60)
    with pytest.raises(TokenError, match="expired 0 s ago"):
        tokens.redeem(token, "node1", NOW + 60)
    with pytest.raises(TokenError, match="is unknown"):
        tokens.redeem("0123456789abcdef.x", "node1", NOW)
    tokens.revoke(token.split(".")[0])
    with pytest.raises(TokenError, match="is unknown"):
        tokens.redeem(token, "node1", NOW)
    with pytest.raises(TokenError, match="no unused join token"):
        tokens.revoke(token.split(".")[0])
    with pytest.raises(TokenError, match="malformed"):
        tokens.revoke("../../x")


def test_secret_is_not_on_disk_and_files_are_private(tokens: JoinTokens, tmp_path: Path) -> None:
    secret = tokens.create("node1", NOW, 60).split(".")[1]
    (path,) = (tmp_path / "tokens").iterdir()
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_many_at_once_exactly_one_wins(tokens: JoinTokens) -> None:
    token = tokens.create("node1", NOW, 3600)
    results: list[str] = []
    barrier = threading.Barrier(8)

    def attempt() -> None:
        barrier.wait()
        try:
            results.append(tokens.redeem(token, "node1", NOW).id)
        except TokenError:
            results.append("")

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert sum(map(bool, results)) == 1


def test_list_shows_unused_tokens_oldest_first(tokens: JoinTokens) -> None:
    tokens.create("node2", NOW + 1, 60)
    used = tokens.create("node3", NOW, 60)
    tokens.create("node1", NOW, 60)
    tokens.redeem(used, "node3", NOW)
    assert [record.node for record in tokens.list_unused()] == ["node1", "node2"]


def test_old_records_are_swept_a_day_after_their_end(tokens: JoinTokens, tmp_path: Path) -> None:
    tokens.create("node1", NOW, 60)
    tokens.redeem(tokens.create("node2", NOW, 60), "node2", NOW)
    assert tokens.sweep(NOW + 60 + KEEP_SECONDS) == 0
    assert tokens.sweep(NOW + 61 + KEEP_SECONDS) == 2
    assert list((tmp_path / "tokens").iterdir()) == []


def test_damaged_record_is_an_error_that_names_it(tokens: JoinTokens, tmp_path: Path) -> None:
    token = tokens.create("node1", NOW, 60)
    (path,) = (tmp_path / "tokens").iterdir()
    path.write_text("{")
    with pytest.raises(TokenError, match="not JSON"):
        tokens.redeem(token, "node1", NOW)


def test_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write a token"):
        JoinTokens(tmp_path / "file").create("node1", NOW, 60)
