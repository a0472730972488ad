"""``metalmesh check-config`` as Ansible's ``validate`` uses it: exit status and one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalmesh.cli.main import main

GOOD = "component: ztunnel\nnode_name: node1\nxds_address: cp1:15012\n"


def test_good_file_is_said_to_be_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ztunnel.yaml"
    path.write_text(GOOD)
    assert main(["check-config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: valid configuration of ztunnel\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "colour: red\n", "colour: unknown key"),
        ("component: kitchen\n", "component: must be one of controlplane, node, ztunnel"),
        ("- a\n", "must hold a mapping"),
        ("a: [\n", "not YAML"),
        ("\x00", "not YAML"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_bad_file_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    path = tmp_path / "file.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["check-config", str(path)]) == 1
    assert f"metalmesh check-config: {path}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("component", ["controlplane", "node"])
def test_other_components_are_checked_by_their_own_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], component: str
) -> None:
    path = tmp_path / f"{component}.yaml"
    path.write_text(f"component: {component}\nno_such_key: 1\n")
    assert main(["check-config", str(path)]) == 1
    assert str(path) in capsys.readouterr().err
