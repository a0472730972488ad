"""When to probe a workload and what the results mean (Kubernetes' readinessProbe); pure.

``now`` is monotonic seconds. A workload with a probe is not well until the probe says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metalmesh.model.resources.probe import Probe


class ProbeState:
    """The results of one workload's probe."""

    def __init__(self, probe: Probe, now: float, *, healthy: bool = False) -> None:
        self.probe = probe
        self.healthy = healthy
        #: when the next probe is due
        self.due_at = now + probe.initial_delay_seconds
        #: why the last one failed; "" when it succeeded or none was made
        self.error = ""
        self._in_a_row = 0

    def record(self, error: str, now: float) -> bool:
        """Take a result in ("" is success); return whether ``healthy`` has changed."""
        self.due_at = max(self.due_at + self.probe.period_seconds, now)
        succeeded = not error
        self.error = error
        if succeeded == self.healthy:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        probe = self.probe
        if self._in_a_row < (probe.success_threshold if succeeded else probe.failure_threshold):
            return False
        self._in_a_row = 0
        self.healthy = succeeded
        return True
