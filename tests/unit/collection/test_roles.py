"""Every role has the same shape, and says the same in its specification and in its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
COLLECTION = ROOT / "collections/ansible_collections/metalmesh/ambient"
ROLES = sorted(path.name for path in (COLLECTION / "roles").iterdir())
LAB_ROLES = sorted(
    path.name for path in (ROOT / "roles").iterdir() if path.is_dir() and not path.is_symlink()
)
PATHS = [COLLECTION / "roles" / name for name in ROLES] + [ROOT / "roles" / n for n in LAB_ROLES]
IDS = [*ROLES, *LAB_ROLES]

every_role = pytest.mark.parametrize("role", PATHS, ids=IDS)


def load(path: Path) -> Any:
    """Read one YAML document."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: Path) -> dict[str, Any]:
    """The options of a role's main entry point."""
    return load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


@every_role
def test_defaults_are_what_the_specification_says(role: Path) -> None:
    """Documentation cannot drift: same keys, same order, same values."""
    documented = {
        name: option["default"] for name, option in options(role).items() if "default" in option
    }
    defaults = load(role / "defaults/main.yml")
    assert list(defaults.items()) == list(documented.items())


@every_role
def test_every_option_is_named_typed_and_described(role: Path) -> None:
    """Public names carry the role's prefix; nothing is left for the reader to guess."""
    for name, option in options(role).items():
        assert name.startswith(f"{role.name}_"), name
        assert option["type"]
        assert option["description"]
        assert "default" in option or option.get("required"), name


@every_role
def test_constants_are_private(role: Path) -> None:
    """What is in vars cannot be meant for users."""
    for name in load(role / "vars/main.yml"):
        assert name.startswith(f"__{role.name}_"), name


@every_role
def test_tasks_begin_with_preflight_and_are_a_table_of_contents(role: Path) -> None:
    """Nothing is changed before everything was checked; the rest is imported, with tags."""
    tasks = load(role / "tasks/main.yml")
    assert tasks[0]["ansible.builtin.include_tasks"]["file"] == "preflight.yml"
    for task in tasks[1:]:
        assert task.keys() == {"name", "ansible.builtin.import_tasks", "tags"}
        assert task["tags"][0] == role.name
        assert task["tags"][1].startswith(f"{role.name}_")


@every_role
def test_every_role_can_be_undone(role: Path) -> None:
    """Uninstalling is an entry point of its own, and documented as one."""
    specs = load(role / "meta/argument_specs.yml")["argument_specs"]
    assert "uninstall" in specs
    assert (role / "tasks/uninstall.yml").is_file()
    for entry in specs:
        assert (role / "tasks" / f"{entry}.yml").is_file(), entry


@every_role
def test_templates_mirror_their_targets_and_say_who_wrote_them(role: Path) -> None:
    """You find a template by the path of its file; the file says not to edit it."""
    templates = [path for path in (role / "templates").rglob("*") if path.is_file()]
    for path in templates:
        below = path.relative_to(role / "templates").as_posix()
        assert below.startswith(("etc/", "usr/", "var/")), below
        assert below.endswith(".j2"), below
        text = path.read_text(encoding="utf-8").split("\n", 1)[0]
        is_state = below.startswith("var/")
        assert is_state or "ansible_managed" in text or "_marker" in text, below


@pytest.mark.parametrize("name", ROLES)
def test_every_role_of_the_collection_has_a_scenario_and_a_readme(name: str) -> None:
    """Nothing is published that no machine has seen."""
    role = COLLECTION / "roles" / name
    scenario = role / "molecule/default"
    assert (scenario / "molecule.yml").is_file()
    assert list((scenario / "tests").glob("test_*.py"))
    assert (role / "README.md").read_text(encoding="utf-8").startswith("# metalmesh.ambient.")


@pytest.mark.parametrize("name", ROLES)
def test_short_path_of_a_role_is_a_relative_link(name: str) -> None:
    """`cd roles/ztunnel && molecule test` works, in any checkout."""
    link = ROOT / "roles" / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (COLLECTION / "roles" / name).resolve()


def test_product_roles_do_not_know_the_lab() -> None:
    """Neither the lab, nor its machines, nor the test harness occur in what is published."""
    for path in sorted((COLLECTION / "roles").rglob("*")):
        if path.is_file() and "molecule" not in path.parts:
            text = path.read_text(encoding="utf-8").lower()
            for word in ("nspawn", "molecule", "lab_name", "lab/lab"):
                assert word not in text, f"{path}: {word}"
