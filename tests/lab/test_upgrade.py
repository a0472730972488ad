"""`playbooks/upgrade.yml` on one node under load: a good release, and one that cannot start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.cast import APP_PORT, Cast
from tests.support.mesh import ZTUNNEL, Mesh
from tests.support.mixed_load import MixedLoad, Outcome

ROOT = Path(__file__).parents[2]
BROKEN = "raise SystemExit('a release that cannot start')\n"


@pytest.fixture
def release(tmp_path: Path):
    """Makes a source tree of this code under another version; returns its directory."""

    def make(version: str) -> Path:
        tree = tmp_path / version
        tree.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "src", tree / "src", ignore=ignored)
        project = tree / "pyproject.toml"
        text = project.read_text().replace('version = "0.1.0"', f'version = "{version}"')
        assert version in text
        project.write_text(text)
        return tree

    return make


def upgrade(
    mesh: Mesh, cast: Cast, package: Path
) -> tuple[subprocess.CompletedProcess[str], Outcome]:
    """Upgrade the client's node while its workloads talk to the other node."""
    command = [sys.executable, "-m", "ansible", "playbook", "playbooks/upgrade.yml"]
    command += ["--limit", cast.client.node.name, "-e", f"runtime_package={package}"]
    clients = [cast.client.netns, cast.peer.netns]
    with MixedLoad(clients, cast.server.address, APP_PORT) as load:
        done = subprocess.run(
            command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
        )
        mesh.wait_ready(cast.client.node)
    return done, load.outcome()


def running(cast: Cast) -> str:
    """Directory of the release that the ztunnel's main process runs from."""
    node = cast.client.node
    pid = node.unit(ZTUNNEL, "MainPID")["MainPID"]
    command = node.sh(f"tr '\\0' ' ' < /proc/{pid}/cmdline")
    (found,) = {
        Path(word).parts[3] for word in command.split() if word.startswith("/opt/metalmesh")
    }
    return found


def assert_unnoticed(outcome: Outcome) -> None:
    """Not one request failed, not one connection was cut."""
    assert not outcome.failures
    assert (outcome.resets, outcome.transfers_lost, outcome.idle_lost) == (0, 0, 0)


def test_upgrade_is_not_noticed(mesh: Mesh, cast: Cast, release) -> None:
    done, outcome = upgrade(mesh, cast, release("0.1.1"))
    print(outcome)
    assert done.returncode == 0, done.stdout + done.stderr
    assert running(cast).startswith("0.1.1-")
    assert_unnoticed(outcome)


def test_broken_release_is_rolled_back(mesh: Mesh, cast: Cast, release) -> None:
    """The play fails and says why; the node runs what it ran, and nobody noticed."""
    before = running(cast)
    package = release("0.1.2")
    main = package / "src/metalmesh/ztunnel/main.py"
    main.write_text(main.read_text().replace("import asyncio\n", f"import asyncio\n{BROKEN}", 1))
    done, outcome = upgrade(mesh, cast, package)
    print(outcome)
    assert done.returncode != 0
    assert f"runs {before} again" in " ".join(done.stdout.split()), done.stdout
    assert running(cast) == before
    node = cast.client.node
    assert node.sh("readlink /opt/metalmesh/current").strip() == f"/opt/metalmesh/{before}"
    assert "0.1.2" not in node.sh("ls /opt/metalmesh")
    assert_unnoticed(outcome)
