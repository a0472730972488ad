"""Label selectors."""

from __future__ import annotations

import pytest

from metalmesh.model.resources.meta import LabelSelector, Requirement

ROWS = [
    ("In", {"a"}, {"k": "a"}, True),
    ("In", {"a"}, {"k": "b"}, False),
    ("In", {"a"}, {}, False),
    ("NotIn", {"a"}, {"k": "a"}, False),
    ("NotIn", {"a"}, {"k": "b"}, True),
    ("NotIn", {"a"}, {}, True),
    ("Exists", set(), {"k": ""}, True),
    ("Exists", set(), {}, False),
    ("DoesNotExist", set(), {"k": "a"}, False),
    ("DoesNotExist", set(), {}, True),
]


@pytest.mark.parametrize(("operator", "values", "labels", "expected"), ROWS)
def test_operators_match_as_in_kubernetes(
    operator: str, values: set[str], labels: dict[str, str], expected: bool
) -> None:
    """NotIn holds for an absent key (labels.Requirement.Matches)."""
    assert Requirement("k", operator, frozenset(values)).matches(labels) is expected


def test_all_parts_of_a_selector_must_hold() -> None:
    selector = LabelSelector((("a", "1"),), (Requirement("b", "Exists"),))
    assert selector.matches({"a": "1", "b": "2"})
    assert not selector.matches({"a": "1"})
    assert not selector.matches({"b": "2"})
    assert LabelSelector().matches({})
