"""What a scenario found: rows of figures, and promises that did not hold."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


class Report:
    """Rows of one scenario."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.rows: list[Row] = []
        #: promises that did not hold.
        self.broken: list[str] = []

    def add(self, row: Row) -> None:
        """One more round; printed at once, since a run takes minutes."""
        self.rows.append(row)
        print(", ".join(f"{name}: {_text(value)}" for name, value in row.items()), flush=True)

    def expect(self, holds: bool, promise: str) -> None:
        """Note a promise that does not hold."""
        if not holds:
            self.broken.append(promise)
            print(f"  BROKEN: {promise}", flush=True)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {"scenario": self.scenario, "rows": self.rows, "broken": self.broken}

    def table(self) -> str:
        """The rows as a Markdown table."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for row in self.rows:
            lines.append(f"| {' | '.join(_text(row.get(name, '')) for name in columns)} |")
        return "\n".join([f"\n{self.scenario}", "", *lines])


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
