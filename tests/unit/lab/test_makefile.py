"""The verbs of the Makefile."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
VERBS = (
    *("help", "setup", "lab", "lab-down", "rebuild", "site", "verify"),
    *("lint", "unit", "wire", "molecule", "test", "bench", "scale", "fuzz"),
)


def test_help_lists_every_verb_with_a_line() -> None:
    """`make` alone tells a newcomer what there is."""
    done = subprocess.run(["make", "-C", ROOT, "-s"], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.strip()]
    listed = {words[1]: words[2] for words in lines if words[0] == "make"}
    assert tuple(listed) == VERBS
    assert all(listed.values())
