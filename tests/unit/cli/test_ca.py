"""``metalmesh ca``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalmesh.cli.main import main


def test_init_says_what_it_wrote_and_nothing_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ca", "init", "--dir", str(tmp_path), "--trust-domain", "td", "-o", "json"]
    assert main([*arguments, "--check"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["changed"]
    assert list(tmp_path.iterdir()) == []
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"changed": False, "files": []}


def test_show_and_renew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ca", "init", "--dir", str(tmp_path)])
    capsys.readouterr()
    serials = []
    for _ in range(2):
        assert main(["ca", "show", "--dir", str(tmp_path), "-o", "json"]) == 0
        root, issuing = json.loads(capsys.readouterr().out)["certificates"]
        assert issuing["issuer"] == root["subject"]
        serials.append((root["serial"], issuing["serial"]))
        assert main(["ca", "renew", "--dir", str(tmp_path)]) == 0
        capsys.readouterr()
    assert serials[0][0] == serials[1][0]
    assert serials[0][1] != serials[1][1]


def test_error_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ca", "show", "--dir", str(tmp_path)]) == 1
    assert "metalmesh ca: " in capsys.readouterr().err
