"""The matrix of :mod:`metalmesh.policy.netpol_matrix` as a table and as a drawing (SVG)."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Cell = Mapping[str, Any]

_COLOURS: Final = {"all": "#2e7d32", "some": "#f9a825", "none": "#c62828", "-": "#9e9e9e"}
_CELL: Final = 28
_LETTER: Final = 7
_MARGIN: Final = 12


def matrix_table(rows: Sequence[Sequence[Cell]]) -> str:
    """Sources down, destinations across; a cell lists ports where not all or none pass."""
    if not rows:
        return "no workload\n"
    head = ["FROM \\ TO", *(cell["destination"] for cell in rows[0])]
    lines = [head, *([row[0]["source"], *map(_word, row)] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "".join(
        "   ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def _word(cell: Cell) -> str:
    return ",".join(cell["admitted"]) if cell["verdict"] == "some" else str(cell["verdict"])


def matrix_svg(rows: Sequence[Sequence[Cell]]) -> str:
    """One square per pair, coloured by verdict; ports show when the pointer rests on it."""
    names = [row[0]["source"] for row in rows]
    label = _MARGIN + _LETTER * max(map(len, names), default=0)
    side = label + _CELL * len(names) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" '
        'font-family="monospace" font-size="12">',
        "<title>NetworkPolicy: from row to column</title>",
    ]
    for number, name in enumerate(names):
        middle = label + _CELL * number + _CELL // 2 + 4
        parts.append(f'<text x="{label - 6}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<text transform="translate({middle},{label - 6}) rotate(-90)">'
                     f"{escape(name)}</text>")  # fmt: skip
    for row_number, row in enumerate(rows):
        for column, cell in enumerate(row):
            parts.append(_square(cell, label + _CELL * column, label + _CELL * row_number))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _square(cell: Cell, x: int, y: int) -> str:
    size = _CELL - 2
    admitted = ", ".join(cell["admitted"]) or "no port"
    hint = f"{cell['source']} to {cell['destination']}: {admitted}"
    return (
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{_COLOURS[cell["verdict"]]}">'
        f"<title>{escape(hint)}</title></rect>"
    )
