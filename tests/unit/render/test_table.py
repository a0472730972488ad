"""Tables of text."""

from __future__ import annotations

from metalmesh.render.table import render_table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """No blanks at the ends of lines: output is compared and pasted."""
    rows = [("a", "", "x"), ("long", "b", "")]
    assert render_table(("A", "MIDDLE", "C"), rows) == "A    MIDDLE C\na           x\nlong b\n"


def test_no_rows_leave_the_header() -> None:
    assert render_table(("A", "B"), [], gap=3) == "A   B\n"
