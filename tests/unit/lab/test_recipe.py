"""The key of an image in the cache."""

from __future__ import annotations

import dataclasses

import pytest

from lab.driver import recipe
from lab.driver.recipe import Recipe

TRIXIE = Recipe(release="trixie", mirror="http://one.example/debian")


def test_name_tells_release_and_content() -> None:
    """Old images are found by release and told apart by digest."""
    assert TRIXIE.name == f"trixie-{TRIXIE.digest}"
    assert TRIXIE.digest != dataclasses.replace(TRIXIE, release="bookworm").digest


def test_mirror_does_not_change_the_digest() -> None:
    """Every mirror holds the same packages; a laptop that travels keeps its cache."""
    assert dataclasses.replace(TRIXIE, mirror="http://two.example/debian").digest == TRIXIE.digest


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("PACKAGES", (*recipe.PACKAGES, "strace")),
        ("MASKED_UNITS", recipe.MASKED_UNITS[1:]),
        ("EXCLUDED_PATHS", ()),
        ("FILES", {**recipe.FILES, "etc/motd": "hello\n"}),
        ("FORMAT", recipe.FORMAT + 1),
    ],
)
def test_every_part_of_the_recipe_changes_the_digest(
    monkeypatch: pytest.MonkeyPatch, part: str, value: object
) -> None:
    """A change of the recipe must never be answered with an image made before it."""
    before = TRIXIE.digest
    monkeypatch.setattr(recipe, part, value)
    assert TRIXIE.digest != before
