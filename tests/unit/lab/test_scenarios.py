"""Which molecule scenarios there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import scenarios


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two roles in a collection with links to them, as in this repository."""
    for scenario in ("ca/molecule/default", "ztunnel/molecule/default", "ztunnel/molecule/ipv6"):
        directory = tmp_path / "collection" / "roles" / scenario
        directory.mkdir(parents=True)
        (directory / "molecule.yml").write_text("{}\n")
    (tmp_path / "roles").mkdir()
    for role in ("ca", "ztunnel"):
        (tmp_path / "roles" / role).symlink_to(f"../collection/roles/{role}")
    monkeypatch.setattr(scenarios, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("tree")
def test_scenarios_are_found_through_the_short_paths() -> None:
    """`make molecule` runs what `cd roles/X && molecule test` runs."""
    every = [("ca", "default"), ("ztunnel", "default"), ("ztunnel", "ipv6")]
    assert scenarios.find_scenarios([]) == every
    assert scenarios.find_scenarios(["ztunnel"]) == every[1:]
    assert scenarios.find_scenarios(["nosuch"]) == []


def test_no_scenario_is_a_failure(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that tests nothing must not look like one that passed."""
    monkeypatch.setattr("sys.argv", ["scenarios", "nosuch"])
    assert scenarios.main() == 1
    assert "no scenario found" in capsys.readouterr().err
    assert not (tree / "artifacts").exists()


def test_every_role_of_the_collection_has_a_scenario() -> None:
    """Each role is proven on a machine of its own."""
    root = Path(__file__).parents[3]
    roles = {path.name for path in (root / "collections").glob("*/*/*/roles/*") if path.is_dir()}
    assert roles
    assert roles <= {role for role, _ in scenarios.find_scenarios([])}
