"""Every wait of the tests: how long at most, and why that long. Nothing here sleeps blindly."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

POLL_SECONDS: Final = 0.02
"""Pause between two looks; short, because measured times end at a look."""


@dataclasses.dataclass(frozen=True)
class Wait:
    """An upper bound of a wait."""

    seconds: float
    reason: str
    """What takes so long at worst."""


WAITS: Final[dict[str, Wait]] = {
    "capture": Wait(10.0, "tcpdump starts in milliseconds, but shares two cores with the lab"),
    "traffic": Wait(10.0, "one connection, at worst behind a full connect timeout"),
    "refused": Wait(15.0, "a proxy gives up an unreachable peer after its 10 s connect timeout"),
    "policy": Wait(5.0, "a policy is in force in 1 s; the rest shows by how much it was late"),
    "log_line": Wait(3.0, "journald takes a line within milliseconds of the end of a connection"),
    "metric": Wait(5.0, "a scrape collects from every worker"),
    "service": Wait(30.0, "a unit restarts, reaches the control plane and gets its state"),
    "crash_restart": Wait(15.0, "the bound of 2 s is asserted by the test, this ends a hung one"),
    "boot": Wait(60.0, "a machine reboots in 3 s and its units need some more"),
    "workload": Wait(15.0, "netns, agent, WDS and the first certificate of a new workload"),
    "drift": Wait(15.0, "the node agent looks for drift every 2 s and re-applies what is missing"),
}


class WaitError(AssertionError):
    """What a test waited for did not happen in time."""


def wait_until(predicate: Callable[[], T], wait: Wait, *, what: str = "") -> T:
    """Return the first truthy answer of the predicate; fail with the wait's reason otherwise."""
    deadline = time.monotonic() + wait.seconds
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            name = what or getattr(predicate, "__name__", "condition")
            raise WaitError(f"{name}: not within {wait.seconds:g} s ({wait.reason})")
        time.sleep(POLL_SECONDS)
