"""Tables of text as kubectl and istioctl print them; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, gap: int = 1) -> str:
    """Left-aligned columns, ``gap`` blanks between them; no blanks at the ends of lines."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    separator = " " * gap
    return "".join(
        separator.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )
