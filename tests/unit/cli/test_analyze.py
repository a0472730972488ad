"""``metalmesh analyze``: a table of what is suspicious, and of what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalmesh.cli.main import main
from tests.unit.cli.test_why import (
    ALLOW,
    ENTRIES,
    HOST,
    MESH,
    METAL_CLOSED,
    NO_HBONE,
    PORT_STRICT,
    STRICT,
    entry,
    policy,
)

#: what the base itself is told about: the service that selects nobody
EMPTY = ("MM0001", "Service demo/empty")
WEB = ENTRIES + entry("web", "10.244.1.12", "web")
SELECTS_NOBODY = "{selector: {matchLabels: {app: gone}}, %s}"
ROWS = [
    ("", set(), ""),
    (STRICT + ALLOW.replace("{to: [{operation: {paths: [/x]}}]},", "") % 8080, set(), ""),
    (policy("AuthorizationPolicy", "p", SELECTS_NOBODY % "action: DENY"),
     {("IST0127", "AuthorizationPolicy demo/p")}, "following labels: app=gone"),
    (policy("PeerAuthentication", "p", SELECTS_NOBODY % "mtls: {mode: STRICT}"),
     {("IST0127", "PeerAuthentication demo/p")}, "following labels: app=gone"),
    (policy("AuthorizationPolicy", "p",
            "{rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/gone]}}]}]}"),
     {("IST0101", "AuthorizationPolicy demo/p")}, "rule 0: service account demo/gone"),
    (policy("AuthorizationPolicy", "p",
            "{rules: [{from: [{source: {serviceAccounts: [gone, demo/sleep]}}]}]}"),
     {("IST0101", "AuthorizationPolicy demo/p")}, "demo/gone"),
    (policy("AuthorizationPolicy", "p", "{action: AUDIT}"),
     {("MM0004", "AuthorizationPolicy demo/p")}, "AUDIT"),
    (policy("AuthorizationPolicy", "p", "{action: NEVER}"),
     {("IST0106", "AuthorizationPolicy demo/p")}, "spec.action"),
    (NO_HBONE, {("MM0002", "NetworkPolicy demo/app-port")}, "15008"),
    (HOST + METAL_CLOSED, {("MM0005", "NetworkPolicy demo/metal")}, "inside of HBONE only"),
    (policy("NetworkPolicy", "none", "{podSelector: {}, policyTypes: [Ingress]}"), set(), ""),
    (NO_HBONE.replace("demo", "plain").replace("app: echo", "app: old"), set(), ""),
    (STRICT + STRICT.replace("name: strict", "name: second"),
     {("MM0004", "PeerAuthentication demo/strict")}, "is older"),
    (PORT_STRICT + PORT_STRICT.replace("name: some", "name: twin"),
     {("MM0003", "PeerAuthentication demo/twin")}, "has no effect on demo/echo-v1"),
    (entry("thief", "10.244.1.10", "x"), {("IST0106", "WorkloadEntry demo/thief")}, "belongs to"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{sorted(row[1])}")
def test_findings_have_code_and_object(
    row: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each finding with its own object, and nothing besides it."""
    resources, expected, words = row
    (tmp_path / "mesh.yaml").write_text(MESH + WEB + resources)
    status = main(["analyze", str(tmp_path), "-o", "json"])
    found = json.loads(capsys.readouterr().out)
    assert {(item["code"], item["origin"]) for item in found} == {EMPTY, *expected}
    assert words in "\n".join(item["message"] for item in found)
    assert status == int(any(item["level"] == "Error" for item in found))


def test_a_named_port_that_nobody_has_is_no_endpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mesh.yaml").write_text(
        (MESH + WEB).replace("targetPort: 8080", "targetPort: nope")
    )
    assert main(["analyze", str(tmp_path)]) == 0
    assert "Warning [MM0001] (Service demo/echo" in (out := capsys.readouterr().out)
    assert "no workload names a port 'nope', to which port 80 leads" in out


def test_threshold_and_namespace_decide_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mesh.yaml").write_text(MESH + WEB)
    assert main(["analyze", str(tmp_path), "--failure-threshold", "Warning"]) == 1
    assert main(["analyze", str(tmp_path), "--failure-threshold", "Warning", "-n", "plain"]) == 0
    assert capsys.readouterr().out.endswith("No validation issues found.\n")
