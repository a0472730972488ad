"""The kernel takes every golden text, and takes it twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalmesh.net.nft import apply_ruleset, fingerprints, list_tables
from tests.support.netns import netns_pair

FILES = sorted((Path(__file__).parents[2] / "golden" / "nft").glob("*.nft"))


@pytest.fixture(scope="module")
def netns():
    with netns_pair() as (first, _):
        yield first


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernel_takes_the_text_and_a_second_load_changes_nothing(netns, path):
    def load() -> dict[str, str]:
        apply_ruleset(path.read_text())
        return fingerprints({name for _, name in list_tables()})

    netns.do(lambda: apply_ruleset("flush ruleset\n"))
    first = netns.do(load)
    assert bool(first) is not path.stem.endswith("-removal")
    assert netns.do(load) == first
