"""The collection as it is published: built, installed elsewhere, used from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COLLECTION = ROOT / "collections/ansible_collections/metalmesh/ambient"
BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path, collections: Path | None = None) -> str:
    """Run one of Ansible's commands away from the checkout's own configuration."""
    environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(cwd),
        "ANSIBLE_HOME": str(cwd / "ansible-home"),
        "LANG": "C.UTF-8",
    }
    if collections is not None:
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(collections)
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which the built artifact is installed."""
    work = tmp_path_factory.mktemp("artifact")
    build = ("ansible-galaxy", "collection", "build", str(COLLECTION), "--output-path", ".")
    run(*build, cwd=work)
    [artifact] = work.glob("metalmesh-ambient-*.tar.gz")
    target = work / "collections"
    install = ("ansible-galaxy", "collection", "install", "--offline", str(artifact))
    run(*install, "-p", str(target), cwd=work, collections=target)
    return target


def test_artifact_holds_the_roles_and_no_tests(installed: Path) -> None:
    base = installed / "ansible_collections/metalmesh/ambient"
    for role in (COLLECTION / "roles").iterdir():
        assert (base / "roles" / role.name / "tasks/main.yml").is_file()
    assert not list(base.rglob("molecule"))
    assert not list(base.rglob("__pycache__"))


def test_its_playbooks_run_from_there(installed: Path, tmp_path: Path) -> None:
    """By name, against an inventory that knows nothing of the checkout."""
    inventory = ROOT / "inventory/baremetal.example"
    for name in ("site", "uninstall", "revoke", "rotate_ca"):
        playbook = ("ansible-playbook", f"metalmesh.ambient.{name}", "-i", str(inventory))
        output = run(*playbook, "--list-tasks", cwd=tmp_path, collections=installed)
        assert str(installed) in output
        assert "mesh_nodes" in output


def test_every_plugin_and_role_is_documented(installed: Path, tmp_path: Path) -> None:
    """What ansible-doc cannot read, nobody can."""
    kinds = {"module": "modules", "filter": "filter", "lookup": "lookup"}
    for kind, folder in kinds.items():
        stems = sorted(path.stem for path in (COLLECTION / "plugins" / folder).glob("*.py"))
        names = [f"metalmesh.ambient.{stem}" for stem in stems]
        document = ("ansible-doc", "--json", "--type", kind, *names)
        documented = json.loads(run(*document, cwd=tmp_path, collections=installed))
        assert sorted(documented) == names
        for name in names:
            assert documented[name]["doc"]["short_description"], name
            assert documented[name]["examples"], name
