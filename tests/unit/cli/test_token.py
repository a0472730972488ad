"""``metalmesh token``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalmesh.cli.main import main


def test_create_list_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--tokens-dir", str(tmp_path)]
    assert main(["token", "create", "--node", "node1", *where]) == 0
    token = capsys.readouterr().out.strip()
    token_id, secret = token.split(".")
    assert main(["token", "list", "-o", "json", *where]) == 0
    text = capsys.readouterr().out
    (row,) = json.loads(text)
    assert (row["id"], row["node"], row["expired"]) == (token_id, "node1", False)
    assert row["expires_at"] - row["created_at"] == 3600
    assert secret not in text
    assert main(["token", "list", *where]) == 0
    assert capsys.readouterr().out.startswith(f"{token_id}  node1  expires in 3")
    assert main(["token", "revoke", token_id, *where]) == 0
    assert main(["token", "revoke", token_id, *where]) == 1
    assert "no unused join token" in capsys.readouterr().err


def test_bad_node_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "create", "--node", "Node 1", "--tokens-dir", str(tmp_path)]) == 1
    assert "node name 'Node 1' must be lower-case" in capsys.readouterr().err
