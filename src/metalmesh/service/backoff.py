"""Exponential delays between attempts."""

from __future__ import annotations


class Backoff:
    """Delays that double from ``initial`` to ``maximum`` (seconds) until :meth:`reset`."""

    def __init__(self, initial: float, maximum: float) -> None:
        self._initial = initial
        self._maximum = maximum
        self._next = initial

    def next_delay(self) -> float:
        """The delay before the next attempt."""
        delay = self._next
        self._next = min(self._next * 2, self._maximum)
        return delay

    def reset(self) -> None:
        """The last attempt succeeded."""
        self._next = self._initial
