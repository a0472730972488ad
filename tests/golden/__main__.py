"""Renew the golden files: ``python -m tests.golden``; then read the diff."""

from __future__ import annotations

from pathlib import Path

from tests.golden import wds_cases
from tests.golden.nft_cases import CASES

if __name__ == "__main__":
    directory = Path(__file__).parent / "nft"
    for stale in directory.glob("*.nft"):
        stale.unlink()
    for name, render in CASES.items():
        (directory / name).write_text(render())
    for source in wds_cases.cases():
        source.with_suffix(".json").write_text(wds_cases.render(source))
