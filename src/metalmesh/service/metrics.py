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
        if self.kind == "histogram":
            head = render_samples(self.kind, self.name, self.text, (), openmetrics=openmetrics)
            return head + self._histogram()
        values = self.values or ({} if self.labels else {(): 0.0})
        samples = [
            (tuple(zip(self.labels, labels, strict=True)), value)
            for labels, value in sorted(values.items())
        ]
        return render_samples(self.kind, self.name, self.text, samples, openmetrics=openmetrics)

    def _histogram(self) -> list[str]:
        lines = []
        for labels, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip((*self.buckets, None), counts, strict=True):
                total += count
                edge = "+Inf" if bound is None else _number(bound)
                pairs = _pairs(zip((*self.labels, "le"), (*labels, edge), strict=True))
                lines.append(f"{self.name}_bucket{pairs} {total}")
            pairs = _pairs(zip(self.labels, labels, strict=True))
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

    def render(self, *, openmetrics: bool = False, extra: str = "") -> str:
        """The text of every family, then ``extra``, text that was rendered elsewhere."""
        for hook in self._before:
            hook()
        lines: list[str] = []
        for family in self._families.values():
            lines += family.render(openmetrics=openmetrics)
        end = "# EOF\n" if openmetrics else ""
        return "\n".join([*lines, ""]) + extra + end

    def _add(self, family: Family) -> Family:
        if family.name in self._families:
            raise ValueError(f"metric {family.name!r} is declared twice")
        self._families[family.name] = family
        return family


def render_samples(
    kind: Kind,
    name: str,
    text: str,
    samples: Iterable[tuple[Sequence[tuple[str, str]], float]],
    *,
    openmetrics: bool,
) -> list[str]:
    """The lines of one family; each sample is its (label, value) pairs and a number."""
    family = name.removesuffix("_total") if openmetrics and kind == "counter" else name
    lines = [f"# HELP {family} {_escape_help(text)}", f"# TYPE {family} {kind}"]
    lines += [f"{name}{_pairs(labels)} {_number(value)}" for labels, value in samples]
    return lines


def wants_openmetrics(accept: str) -> bool:
    """Whether an ``Accept`` header asks for OpenMetrics."""
    return "application/openmetrics-text" in accept


def _pairs(labels: Iterable[tuple[str, str]]) -> str:
    text = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
    return "{" + text + "}" if text else ""


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
