"""One fact, one place: numbers that documents and roles repeat equal ``constants.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
