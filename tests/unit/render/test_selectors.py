"""The index finds exactly what selects."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metalmesh.render.selectors import SelectorIndex

LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3)


@given(st.lists(LABELS, max_size=8), LABELS)
def test_index_agrees_with_trying_every_selector(
    selectors: list[dict[str, str]], labels: dict[str, str]
) -> None:
    index = SelectorIndex((tuple(sorted(item.items())), n) for n, item in enumerate(selectors))
    expected = [n for n, item in enumerate(selectors) if item.items() <= labels.items()]
    assert index.select(labels) == expected
