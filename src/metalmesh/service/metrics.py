"""Counters, gauges and histograms, and their Prometheus and OpenMetrics text.

One process, one thread: no locks. Label values are positional, in the order the family declares.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]

CONTENT_TYPE_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
CONTENT_TYPE_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Family:
    """All samples of one metric name. Counters carry ``_total`` in their name."""

    def __init__(
        self,
        kind: Kind,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = (),
    ) -> None:
        self.kind: Final = kind
        self.name: Final = name
        self.text: Final = text
        self.labels: Final = tuple(labels)
        self.buckets: Final = tuple(sorted(buckets))
        self.values: dict[Labels, float] = {}
        self._counts: dict[Labels, list[int]] = {}

    def inc(self, labels: Labels = (), amount: float = 1) -> None:
        """Add to a counter or gauge."""
        self.values[labels] = self.values.get(labels, 0) + amount

    def set(self, value: float, labels: Labels = ()) -> None:
        """Set a gauge."""
        self.values[labels] = value

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Record one observation of a histogram."""
        counts = self._counts.setdefault(labels, [0] * (len(self.buckets) + 1))
        counts[bisect_left(self.buckets, value)] += 1
        self.inc(labels, value)

    def clear(self) -> None:
        """Forget every sample (for gauges that are computed anew)."""
        self.values.clear()
        self._counts.clear()

    def render(self, *, openmetrics: bool) -> list[str]:
        """The family's lines; a family without labels always has a sample."""
        family = self.name
        if openmetrics and self.kind == "counter":
            family = family.removesuffix("_total")
        lines = [f"# HELP {family} {_escape_help(self.text)}", f"# TYPE {family} {self.kind}"]
        if self.kind == "histogram":
            return lines + self._histogram()
        values = self.values or ({} if self.labels else {(): 0.0})
        for labels, value in sorted(values.items()):
            lines.append(f"{self.name}{_pairs(self.labels, labels)} {_number(value)}")
        return lines

    def _histogram(self) -> list[str]:
        lines = []
        for labels, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip((*self.buckets, None), counts, strict=True):
                total += count
                edge = "+Inf" if bound is None else _number(bound)
                pairs = _pairs((*self.labels, "le"), (*labels, edge))
                lines.append(f"{self.name}_bucket{pairs} {total}")
            pairs = _pairs(self.labels, labels)
            lines.append(f"{self.name}_sum{pairs} {_number(self.values[labels])}")
            lines.append(f"{self.name}_count{pairs} {total}")
        return lines


class Registry:
    """The metrics of a process; ``before`` hooks refresh computed gauges at each scrape."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._before: list[Callable[[], None]] = []

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Family:
        """Declare a counter; its name ends in ``_total``."""
        if not name.endswith("_total"):
            raise ValueError(f"counter {name!r} must end in _total")
        return self._add(Family("counter", name, text, labels))

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Family:
        """Declare a gauge."""
        return self._add(Family("gauge", name, text, labels))

    def histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Family:
        """Declare a histogram with these upper bounds (``+Inf`` is implied)."""
        return self._add(Family("histogram", name, text, labels, buckets))

    def before_scrape(self, hook: Callable[[], None]) -> None:
        """Call ``hook`` before each rendering."""
        self._before.append(hook)

    def families(self) -> Iterable[Family]:
        """Every declared family, in order of declaration."""
        return self._families.values()

    def render(self, *, openmetrics: bool = False, extra: Iterable[Family] = ()) -> str:
        """The text of every family; ``extra`` families come from elsewhere (workers)."""
        for hook in self._before:
            hook()
        lines: list[str] = []
        for family in (*self._families.values(), *extra):
            lines += family.render(openmetrics=openmetrics)
        if openmetrics:
            lines.append("# EOF")
        return "\n".join([*lines, ""])

    def _add(self, family: Family) -> Family:
        if family.name in self._families:
            raise ValueError(f"metric {family.name!r} is declared twice")
        self._families[family.name] = family
        return family


def wants_openmetrics(accept: str) -> bool:
    """Whether an ``Accept`` header asks for OpenMetrics."""
    return "application/openmetrics-text" in accept


def _pairs(names: Sequence[str], values: Labels) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
