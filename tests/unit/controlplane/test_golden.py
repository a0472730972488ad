"""What is served equals the golden files; ``python -m tests.golden`` renews them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.wds_cases import DIRECTORY, cases, render


@pytest.mark.parametrize("path", cases(), ids=lambda path: path.stem)
def test_served_resources_equal_the_golden_file(path: Path) -> None:
    expected = path.with_suffix(".json").read_text()
    assert render(path) == expected, "renew with: python -m tests.golden"


def test_every_golden_file_has_its_input() -> None:
    assert {path.stem for path in DIRECTORY.glob("*.json")} == {path.stem for path in cases()}
    assert len(cases()) >= 4
