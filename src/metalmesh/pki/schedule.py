"""When to ask the CA for which identity (istio-facts 4: client schedule). Pure: ``now`` is given.

Each wanted identity has at most one request under way. A certificate is renewed at half of its
life; while it is valid, failures to renew it concern nobody. Without one, callers get the error at
once and the next attempt follows a backoff of 1 s doubling to 150 s, 20 % either way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from metalmesh.pki.svid import Svid

CONCURRENT_REQUESTS: Final = 8
BACKOFF_INITIAL_SECONDS: Final = 1.0
BACKOFF_MAXIMUM_SECONDS: Final = 150.0
BACKOFF_JITTER: Final = 0.2


class Priority(IntEnum):
    """Who waits; the lower number goes first."""

    #: a connection waits for it
    REAL_TIME = 0
    #: a local workload will need it
    WARMUP = 1
    #: renewal of one that is still good
    BACKGROUND = 2


@dataclass(slots=True)
class _Entry:
    priority: Priority
    #: unix seconds of the next request
    due_at: float
    svid: Svid | None = None
    error: str = ""
    in_flight: bool = False
    backoff: float = field(default=BACKOFF_INITIAL_SECONDS)


class SvidSchedule:
    """Wanted identities, what is held for them and when to ask again.

    ``jitter`` returns a number in [-1, 1]; it spreads the retries of many nodes.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._entries: dict[str, _Entry] = {}
        self._jitter = jitter

    def want(self, identity: str, priority: Priority, now: float) -> None:
        """Have a certificate for ``identity``; wanting again can only raise the priority."""
        entry = self._entries.get(identity)
        if entry is None:
            self._entries[identity] = _Entry(priority, now)
        elif priority < entry.priority and self.held(identity, now) is None:
            entry.priority = priority

    def forget(self, identity: str) -> None:
        """Nobody needs it any more; an answer under way will be ignored."""
        self._entries.pop(identity, None)

    def retry_now(self, now: float) -> None:
        """The CA may be back: do not sit out the backoff."""
        for entry in self._entries.values():
            if entry.error and not entry.in_flight:
                entry.backoff = BACKOFF_INITIAL_SECONDS
                entry.due_at = min(entry.due_at, now)

    def renew(self, identity: str, at: float) -> None:
        """Ask for a new certificate at ``at`` already; what is held stays in use meanwhile."""
        entry = self._entries.get(identity)
        if entry is not None and not entry.in_flight:
            entry.due_at = min(entry.due_at, at)

    def start_due(self, now: float) -> list[str]:
        """Identities to ask for now, most urgent first; they count as under way."""
        room = CONCURRENT_REQUESTS - sum(e.in_flight for e in self._entries.values())
        due = [
            (entry.priority, entry.due_at, identity)
            for identity, entry in self._entries.items()
            if not entry.in_flight and entry.due_at <= now
        ]
        chosen = [identity for _, _, identity in sorted(due)[:room]]
        for identity in chosen:
            self._entries[identity].in_flight = True
        return chosen

    def next_deadline(self) -> float | None:
        """When :meth:`start_due` or :meth:`expired` has something to say; None: never."""
        times = [entry.due_at for entry in self._entries.values() if not entry.in_flight]
        times += [e.svid.not_after for e in self._entries.values() if e.svid is not None]
        return min(times, default=None)

    def succeeded(self, identity: str, svid: Svid, now: float) -> bool:
        """Take a new certificate; false when nobody wants it any more."""
        entry = self._entries.get(identity)
        if entry is None:
            return False
        entry.svid, entry.error = svid, ""
        entry.priority = Priority.BACKGROUND
        # never at once again, should a CA hand out certificates past their half-life
        entry.due_at = max(svid.rotate_at, now + BACKOFF_INITIAL_SECONDS)
        entry.in_flight = False
        entry.backoff = BACKOFF_INITIAL_SECONDS
        return True

    def failed(self, identity: str, error: str, now: float) -> bool:
        """A request failed; true when the identity is left without a valid certificate."""
        entry = self._entries.get(identity)
        if entry is None:
            return False
        delay = entry.backoff * (1 + BACKOFF_JITTER * self._jitter())
        entry.backoff = min(entry.backoff * 2, BACKOFF_MAXIMUM_SECONDS)
        entry.error, entry.in_flight = error, False
        entry.due_at = now + delay
        held = self.held(identity, now)
        if held is not None:
            entry.due_at = min(entry.due_at, held.not_after)
        return held is None

    def expired(self, now: float) -> list[str]:
        """Drop certificates whose time is over; return their identities."""
        gone = [i for i, e in self._entries.items() if e.svid and e.svid.not_after <= now]
        for identity in gone:
            entry = self._entries[identity]
            entry.svid = None
            entry.error = entry.error or "certificate expired"
        return gone

    def held(self, identity: str, now: float) -> Svid | None:
        """The valid certificate of an identity, if there is one."""
        entry = self._entries.get(identity)
        if entry is None or entry.svid is None or entry.svid.not_after <= now:
            return None
        return entry.svid

    def error(self, identity: str) -> str:
        """Why there is none; "" while the first request has not failed."""
        entry = self._entries.get(identity)
        return "" if entry is None else entry.error

    def state(self, identity: str, now: float) -> str:
        """``Available``, ``Initializing`` or ``Unavailable: why`` (istio-facts 8.3)."""
        if self.held(identity, now) is not None:
            return "Available"
        error = self.error(identity)
        return f"Unavailable: {error}" if error else "Initializing"

    def identities(self) -> Iterable[str]:
        """Every wanted identity."""
        return self._entries.keys()
