"""Rendered nft text equals the golden files; ``python -m tests.golden`` renews them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.nft_cases import CASES

DIRECTORY = Path(__file__).parents[2] / "golden" / "nft"


@pytest.mark.parametrize("name", sorted(CASES))
def test_text_equals_the_golden_file(name):
    assert CASES[name]() == (DIRECTORY / name).read_text(), "renew with: python -m tests.golden"


def test_every_golden_file_is_rendered_by_a_case():
    assert {path.name for path in DIRECTORY.glob("*.nft")} == set(CASES)
