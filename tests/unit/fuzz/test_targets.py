"""Every fuzz target on its seeds, on mutations of them, and on whatever was ever found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, run_target

FOUND = Path(__file__).parents[2] / "fuzz" / "found"
MUTATIONS = 60


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change, remove, insert or double a piece."""
    at = source.randrange(len(data) + 1)
    end = min(len(data), at + source.randrange(8))
    piece = source.randbytes(source.randrange(6))
    return data[:at] + source.choice((piece, b"", data[at:end] * 2)) + data[end:]


@pytest.mark.parametrize("name", TARGETS)
def test_only_named_errors_escape(name: str) -> None:
    source = random.Random(name)
    for seed in TARGETS[name].seeds:
        run_target(name, seed)
        for _ in range(MUTATIONS):
            data = seed
            for _ in range(source.randrange(1, 4)):
                data = mutate(data, source)
            run_target(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_reach_beyond_the_first_check(name: str) -> None:
    """A seed that is refused as a whole would be worth nothing."""
    target = TARGETS[name]
    accepted = 0
    for seed in target.seeds:
        try:
            target.run(seed)
        except target.errors:
            continue
        accepted += 1
    assert accepted > 0


def test_what_was_found_stays_mended() -> None:
    """File names begin with the target's name and a dash."""
    for path in sorted(FOUND.glob("*")):
        run_target(path.name.partition("-")[0], path.read_bytes())
