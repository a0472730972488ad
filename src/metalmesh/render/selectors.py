"""Find what selects a workload without trying every selector."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_T = TypeVar("_T")

Labels = tuple[tuple[str, str], ...]


class SelectorIndex(Generic[_T]):
    """Items by the labels they require; all of them must be there (``matchLabels``).

    An item is filed under its first label only, so that a lookup costs one step per label of the
    workload plus one per candidate. An item without labels selects everything.
    """

    def __init__(self, items: Iterable[tuple[Labels, _T]]) -> None:
        self._by_label: dict[tuple[str, str], list[tuple[int, Labels, _T]]] = defaultdict(list)
        self._always: list[tuple[int, _T]] = []
        for order, (labels, item) in enumerate(items):
            if labels:
                self._by_label[labels[0]].append((order, labels, item))
            else:
                self._always.append((order, item))

    def select(self, labels: Mapping[str, str]) -> list[_T]:
        """The items that select ``labels``, in the order they were given."""
        found = list(self._always)
        for pair in labels.items():
            for order, required, item in self._by_label.get(pair, ()):
                if all(labels.get(key) == value for key, value in required):
                    found.append((order, item))
        found.sort(key=lambda pair: pair[0])
        return [item for _, item in found]
