"""What a failed test leaves behind for whoever has to find out why: one directory, one path.

A fixture adds witnesses while the test runs; they are asked only when it fails. A witness that
cannot answer writes down why, because the next one may still know something.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2] / "artifacts"


@dataclasses.dataclass
class Evidence:
    """Witnesses of one test."""

    test: str
    witnesses: dict[str, Callable[[], str]] = dataclasses.field(default_factory=dict)
    """File name -> what to write into it."""
    files: list[Path] = dataclasses.field(default_factory=list)
    """Files to keep, such as recordings; directories are kept whole."""

    def collect(self, report: str) -> Path:
        """Write everything down; return the directory."""
        directory = ROOT / re.sub(r"[^A-Za-z0-9._-]+", "-", self.test).strip("-")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "report.txt").write_text(report)
        for name, witness in self.witnesses.items():
            (directory / name).write_text(_ask(witness))
        for path in self.files:
            if path.is_dir():
                shutil.copytree(path, directory / path.name)
            elif path.exists():
                shutil.copy(path, directory / path.name)
        return directory


def _ask(witness: Callable[[], str]) -> str:
    try:
        return witness()
    except Exception as error:
        return f"cannot say: {type(error).__name__}: {error}\n"
