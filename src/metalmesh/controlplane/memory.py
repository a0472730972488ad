"""What a computation keeps of the last one: results by the values they were made from; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Memo:
    """A rendered object with the values it was rendered from."""

    inputs: tuple[object, ...]
    output: Any


class Memory:
    """The results of this run; those of the last one serve again where nothing changed."""

    def __init__(self, last: Mapping[tuple[str, str], Memo]) -> None:
        self._last = last
        self.memo: dict[tuple[str, str], Memo] = {}

    def remember(self, kind: str, key: str, inputs: tuple[object, ...], make: Any) -> Any:
        """``make()``, or its last result when every input is the very same value."""
        last = self._last.get((kind, key))
        if last is None or not _same(last.inputs, inputs):
            last = Memo(inputs, make())
        self.memo[kind, key] = last
        return last.output

    def shared(self, kind: str, key: str, items: Sequence[_T]) -> tuple[_T, ...]:
        """The sequence as a tuple that is the last run's own when its items are the same."""
        last = self._last.get((kind, key))
        found = tuple(items)
        if last is not None and _same(last.inputs, found):
            found = last.output
        self.memo[kind, key] = Memo(found, found)
        return found


def _same(one: Sequence[object], other: Sequence[object]) -> bool:
    """Whether both hold the very same values: identity, which is cheap and never wrong."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
