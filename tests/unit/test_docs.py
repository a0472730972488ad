"""One fact, one place: numbers that documents and roles repeat equal ``constants.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from metalmesh import constants

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\|(.+)\|$", re.MULTILINE)


def tables(text: str) -> list[list[str]]:
    """Cells of every row of every Markdown table."""
    return [[cell.strip() for cell in row.split("|")] for row in ROW.findall(text)]


def numbers_by_constant(text: str) -> dict[str, int]:
    """Every table row that names a constant in backticks beside a number."""
    found = {}
    for cells in tables(text):
        names = [cell.strip("`") for cell in cells if re.fullmatch(r"`[A-Z][A-Z_]+`", cell)]
        values = [int(cell, 0) for cell in cells if re.fullmatch(r"0x[0-9a-f]+|\d+", cell)]
        if names and values:
            found[names[0]] = values[0]
    return found


def test_architecture_tables_equal_constants() -> None:
    """The port and mark tables of ARCHITECTURE.md are what the code uses."""
    said = numbers_by_constant((ROOT / "ARCHITECTURE.md").read_text())
    assert said == {name: getattr(constants, name) for name in said}


@pytest.mark.parametrize("prefix", ["PORT_", "MARK_"])
def test_architecture_names_every_port_and_mark(prefix: str) -> None:
    """A new port or mark has to appear in the tables."""
    said = numbers_by_constant((ROOT / "ARCHITECTURE.md").read_text())
    assert {name for name in vars(constants) if name.startswith(prefix)} <= set(said)


def test_a_wrong_number_is_found() -> None:
    """Negative twin: the tables are really read."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    changed = text.replace("| 15008 | `PORT_HBONE`", "| 15009 | `PORT_HBONE`")
    assert changed != text
    assert numbers_by_constant(changed)["PORT_HBONE"] == 15009


ROLES = ROOT / "collections/ansible_collections/metalmesh/ambient/roles"
REPEATED = {
    "control_plane_port": "PORT_XDS",
    "control_plane_metrics_port": "PORT_CONTROL_PLANE_METRICS",
    "control_plane_svid_ttl_seconds": "SVID_TTL_SECONDS",
    "control_plane_svid_max_ttl_seconds": "SVID_MAX_TTL_SECONDS",
    "node_agent_control_plane_port": "PORT_XDS",
    "ztunnel_control_plane_port": "PORT_XDS",
    "ztunnel_svid_ttl_seconds": "SVID_TTL_SECONDS",
}
"""Role option -> the constant its default repeats for readers."""


def role_defaults() -> dict[str, object]:
    """Defaults of every role."""
    found: dict[str, object] = {}
    for path in sorted(ROLES.glob("*/defaults/main.yml")):
        found |= yaml.safe_load(path.read_text()) or {}
    return found


def test_role_defaults_repeat_the_right_numbers() -> None:
    """A default that repeats a constant for its readers equals it."""
    defaults = role_defaults()
    assert {key: defaults[key] for key in REPEATED} == {
        key: getattr(constants, name) for key, name in REPEATED.items()
    }


def test_every_number_of_the_mesh_in_defaults_is_checked() -> None:
    """A new option for a port has to be added to the list above."""
    ports = {
        key
        for key, value in role_defaults().items()
        if key.endswith("_port") and isinstance(value, int)
    }
    assert ports <= set(REPEATED)


NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def compatibility_rows() -> list[list[str]]:
    """Rows of the feature tables, without their heads."""
    rows = tables((ROOT / "docs/reference/compatibility.md").read_text())
    return [row for row in rows if row[0] not in ("feature", "---")]


def interoperability_rows() -> list[list[str]]:
    """What real peers rely on, line by line."""
    rows = tables((ROOT / "docs/reference/interoperability.md").read_text())
    return [row for row in rows if row[0] not in ("what it relies on", "---")]


@pytest.mark.parametrize(
    ("rows", "columns", "least"),
    [(compatibility_rows(), 4, 50), (interoperability_rows(), 2, 25)],
    ids=["features", "peers"],
)
def test_every_feature_names_a_test_that_exists(
    rows: list[list[str]], columns: int, least: int
) -> None:
    """No row without a test, no test that is gone."""
    assert len(rows) > least
    for row in rows:
        named = NAMED_TEST.findall(row[-1])
        assert len(row) == columns, row[0]
        assert named, row[0]
        for file, name in named:
            text = (ROOT / file).read_text()
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{file}::{name}"
