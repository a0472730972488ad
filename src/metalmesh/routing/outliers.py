"""Endpoints that keep failing are left out for a while; pure, ``now`` is an argument.

Istio's ztunnel has nothing of this; the numbers are those of Envoy's outlier detection. At most
half of the endpoints of a route are ejected at a time, so never the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: failures in a row after which an endpoint is ejected
CONSECUTIVE_FAILURES: Final = 5
#: first ejection, seconds; the second lasts twice as long, and so on up to the last
BASE_EJECTION_SECONDS: Final = 30.0
MAX_EJECTION_SECONDS: Final = 300.0
#: endpoints remembered; beyond, memory of failures begins anew
_MAX_RECORDS: Final = 10_000

Key = tuple[str, str]


@dataclass(slots=True)
class _Record:
    failures: int = 0
    failed_at: float = -1.0
    times: int = 0
    ejected_until: float = -1.0


class Outliers:
    """What one client knows of the endpoints it had trouble with; empty while all is well."""

    def __init__(self) -> None:
        self.records: dict[Key, _Record] = {}

    def ejected(self, key: Key, now: float) -> bool:
        """Whether the endpoint is to be left out now."""
        record = self.records.get(key)
        return record is not None and now < record.ejected_until

    def count(self, now: float) -> int:
        """How many endpoints are ejected now."""
        return sum(now < record.ejected_until for record in self.records.values())

    def failed(self, key: Key, fellows: Iterable[Key], now: float) -> float:
        """An attempt failed; for how many seconds the endpoint is ejected now, mostly 0.

        ``fellows`` are all endpoints of the route. Failures of one instant are one failure: many
        connections may have waited for the same attempt.
        """
        if key not in self.records and len(self.records) >= _MAX_RECORDS:
            self.records.clear()
        record = self.records.setdefault(key, _Record())
        if record.failed_at == now or now < record.ejected_until:
            return 0.0
        record.failed_at = now
        record.failures += 1
        if record.failures < CONSECUTIVE_FAILURES or not self._may_eject(fellows, now):
            return 0.0
        record.failures = 0
        record.times += 1
        seconds = min(record.times * BASE_EJECTION_SECONDS, MAX_EJECTION_SECONDS)
        record.ejected_until = now + seconds
        return seconds

    def _may_eject(self, fellows: Iterable[Key], now: float) -> bool:
        everybody = set(fellows)
        out = sum(self.ejected(key, now) for key in everybody)
        return out + 1 <= len(everybody) // 2

    def succeeded(self, key: Key, now: float) -> None:
        """A connection was made; after a good while even former ejections are forgotten."""
        record = self.records.get(key)
        if record is None:
            return
        record.failures = 0
        if now >= record.ejected_until + MAX_EJECTION_SECONDS or record.times == 0:
            del self.records[key]
