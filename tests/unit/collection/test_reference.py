"""The generated reference is what the specifications say now."""

from __future__ import annotations

import runpy
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[3] / "docs/reference"


def test_reference_is_current() -> None:
    """After a change of an option: python docs/reference/generate.py."""
    rendered = runpy.run_path(str(REFERENCE / "generate.py"))["render"]()
    assert (REFERENCE / "ansible.md").read_text(encoding="utf-8") == rendered
