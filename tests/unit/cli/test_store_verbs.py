"""``metalmesh apply``, ``get``, ``describe`` and ``delete`` on a store; by ssh in tests/lab."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from metalmesh.cli import store as store_module
from metalmesh.cli.main import main

POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: demo}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}]}
"""
NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}
"""
ENTRY = """\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: NAME, namespace: demo, annotations: {ambient.metalmesh.io/node: node1}}
spec: {address: ADDRESS, serviceAccount: web}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    found = tmp_path / "store"
    found.mkdir()
    (tmp_path / "state").mkdir()
    config = {
        "component": "controlplane", "server_names": ["cp1"], "store_dir": str(found),
        "state_dir": str(tmp_path / "state"), "metrics_port": 1,
    }  # fmt: skip
    (tmp_path / "controlplane.yaml").write_text(yaml.safe_dump(config))
    return found


@pytest.fixture
def run(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> Run:
    """``run(verb, ..., stdin=text)``: exit status, output, errors."""

    def call(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = main([*words, "--config", str(tmp_path / "controlplane.yaml")])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_apply_says_what_became_of_each_object(run: Run, store: Path) -> None:
    """kubectl's words; an unchanged object's file is not touched."""
    both = f"{NAMESPACE}---\n{POLICY}"
    name = "authorizationpolicy.security.istio.io/deny"
    assert run("apply", "-f", "-", stdin=both) == (
        0,
        f"namespace/demo created\n{name} created\n",
        "",
    )
    path = store / "AuthorizationPolicy/demo/deny.yaml"
    before = path.stat().st_ino
    changed = both.replace("ambient", "none")
    done = run("apply", "-f", "-", stdin=changed)
    assert done == (0, f"namespace/demo configured\n{name} unchanged\n", "")
    assert path.stat().st_ino == before
    assert "none" in (store / "Namespace/_cluster/demo.yaml").read_text()
    assert list(store.rglob(".*")) == []


def test_apply_takes_files_and_directories(run: Run, tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.yaml").write_text(NAMESPACE)
    (folder / "b.yml").write_text(POLICY)
    assert run("apply", "-f", str(folder))[0] == 0
    assert run("apply", "-f", str(folder / "a.yaml"), "-f", str(folder / "b.yml"))[1].count(
        "unchanged"
    ) == 2  # fmt: skip
    status, _, errors = run("apply", "-f", str(folder / "missing.yaml"))
    assert (status, "missing.yaml: cannot be read" in errors) == (1, True)


def test_dry_run_changes_nothing(run: Run, store: Path) -> None:
    status, out, _ = run("apply", "-f", "-", "--dry-run", stdin=POLICY)
    assert (status, out) == (0, "authorizationpolicy.security.istio.io/deny created (dry run)\n")
    assert list(store.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (POLICY.replace("DENY", "NEVER"), "AuthorizationPolicy demo/deny: spec.action"),
        (POLICY + "---\nkind: [", "not valid YAML"),
        (POLICY + "---\n" + POLICY, "is given twice"),
        ("", "no objects"),
        (ENTRY.replace("NAME", "b").replace("ADDRESS", "10.0.0.1"), "10.0.0.1 belongs to"),
    ],
)
def test_one_fault_refuses_all(run: Run, store: Path, text: str, words: str) -> None:
    """Also a fault between objects: an address that another one has."""
    first = ENTRY.replace("NAME", "a").replace("ADDRESS", "10.0.0.1")
    assert run("apply", "-f", "-", stdin=first)[0] == 0
    before = sorted(store.rglob("*"))
    status, out, errors = run("apply", "-f", "-", stdin=text)
    assert (status, out) == (1, "")
    assert words in errors
    assert sorted(store.rglob("*")) == before


def test_reservations_are_warnings(run: Run) -> None:
    text = POLICY.replace("namespaces: [other]", "requestPrincipals: [x]")
    status, out, errors = run("apply", "-f", "-", stdin=text)
    assert (status, out.split()[1]) == (0, "created")
    assert errors.startswith("Warning: AuthorizationPolicy demo/deny: UnsupportedValue: ")


def test_objects_in_files_of_other_names_are_changed_there(run: Run, store: Path) -> None:
    """But not where others would be lost with them."""
    (store / "mine.yaml").write_text(POLICY)
    changed = POLICY.replace("other", "others")
    assert run("apply", "-f", "-", stdin=changed)[1].endswith("configured\n")
    assert "others" in (store / "mine.yaml").read_text()
    (store / "mine.yaml").write_text(f"{POLICY}---\n{NAMESPACE}")
    status, _, errors = run("apply", "-f", "-", stdin=changed)
    assert (status, "together with other objects" in errors) == (1, True)
    assert run("delete", "ap", "deny", "-n", "demo")[0] == 1


def test_get_lists_and_shows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("apply", "-f", "-", stdin=f"{NAMESPACE}---\n{POLICY}")
    entry = {
        "object": "AuthorizationPolicy demo/deny", "source": "f", "inForce": True,
        "created": (datetime.now(UTC) - timedelta(hours=3)).isoformat(),
        "outdated": False, "errors": [], "conditions": [
            {"type": "ZtunnelAccepted", "status": "True", "reason": "Accepted", "message": "m"}
        ],
    }  # fmt: skip
    monkeypatch.setattr(store_module, "fetch", lambda *_: json.dumps({"objects": [entry]}))
    header, row = run("get", "authorizationpolicies", "-n", "demo")[1].splitlines()
    assert header.split() == ["NAME", "ACTION", "AGE"]
    assert row.split() == ["deny", "DENY", "3h"]
    header, row = run("get", "ap", "-A", "-o", "wide")[1].splitlines()
    assert header.split() == ["NAMESPACE", "NAME", "ACTION", "SELECTOR", "AGE", "STATUS"]
    assert row.split() == ["demo", "deny", "DENY", "<none>", "3h", "Accepted"]
    shown = json.loads(run("get", "ap", "deny", "-n", "demo", "-o", "json")[1])
    assert shown["status"]["conditions"][0]["type"] == "ZtunnelAccepted"
    assert yaml.safe_load(run("get", "ns", "-o", "yaml")[1])["items"][0]["kind"] == "Namespace"
    assert run("get", "ns", "-o", "name")[1] == "namespace/demo\n"
    assert run("get", "ap")[2] == "No resources found in default namespace.\n"
    status, _, errors = run("get", "ap", "gone", "-n", "demo")
    assert (status, "demo/gone is not in the store" in errors) == (1, True)
    assert "no kind 'pods'" in run("get", "pods")[2]
    text = run("describe", "ap", "deny", "-n", "demo")[1]
    assert "Status: Accepted\nSource: f\nConditions:\n  TYPE             STATUS" in text


def test_delete_removes_object_file_and_empty_directories(run: Run, store: Path) -> None:
    run("apply", "-f", "-", stdin=f"{NAMESPACE}---\n{POLICY}")
    status, out, _ = run("delete", "authorizationpolicy", "deny", "-n", "demo")
    assert (status, out) == (0, 'authorizationpolicy.security.istio.io "deny" deleted\n')
    assert run("delete", "-f", "-", stdin=NAMESPACE)[1] == 'namespace "demo" deleted\n'
    assert list(store.iterdir()) == []
    status, _, errors = run("delete", "ns", "demo")
    assert (status, "Namespace demo is not in the store" in errors) == (1, True)
    assert run("delete")[0] == 1


def test_without_a_control_plane_the_way_to_another_machine_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["get", "ns", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "no control plane on this machine; use --host or -i" in capsys.readouterr().err
