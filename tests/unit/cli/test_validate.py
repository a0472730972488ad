"""``metalmesh validate``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from metalmesh.cli.main import main
from tests.unit.controlplane.conftest import entry
from tests.unit.controlplane.test_services import service_entry


def test_valid_files_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(entry("a", "10.0.0.1") + "---\n" + entry("b", "10.0.0.2"))
    assert main(["validate", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "2 objects are valid\n"


def test_every_error_is_one_line_and_the_status_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors between files are found, too."""
    (tmp_path / "a.yaml").write_text(entry("a", "10.0.0.1"))
    (tmp_path / "b.yaml").write_text(entry("b", "10.0.0.1"))
    (tmp_path / "c.yaml").write_text("kind: [")
    assert main(["validate", str(tmp_path), str(tmp_path / "missing.yaml")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "c.yaml: not valid YAML" in lines[0]
    assert lines[1] == f"{tmp_path}/missing.yaml: cannot be read: No such file or directory"
    assert "b.yaml: WorkloadEntry demo/b: spec.address: address 10.0.0.1 belongs to" in lines[2]


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: demo}
spec: {action: AUDIT}
"""


def test_reservations_are_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(POLICY)
    assert main(["validate", str(path)]) == 0
    assert (
        f"{path}: AuthorizationPolicy demo/p: warning: ZtunnelAccepted UnsupportedValue: ztunnel "
        "does not support the AUDIT action\n"
    ) in capsys.readouterr().out


def test_host_of_two_service_entries_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = service_entry("one", "hosts: [a.example.com], resolution: STATIC")
    (tmp_path / "e.yaml").write_text(one + "---\n" + one.replace("name: one", "name: two"))
    assert main(["validate", str(tmp_path)]) == 0
    warning = "ServiceEntry demo/two: warning: Accepted HostConflict: a.example.com belongs to"
    assert warning in capsys.readouterr().out


def test_json_is_for_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (POLICY + "---\n" + entry("a", "x y")).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert main(["validate", "-", "-o", "json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["valid"] is False
    assert result["objects"] == ["AuthorizationPolicy demo/p"]
    assert result["errors"][0]["object"] == "WorkloadEntry demo/a"
    assert result["errors"][0]["field"] == "spec.address"
    assert result["warnings"][0]["reason"] == "UnsupportedValue"
