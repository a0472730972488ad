"""Keeps one workload captured, or off the network: the job of a netns that is up.

Fail closed: what cannot be captured must not talk in the clear. A workload is cut off (the node's
end of its link goes down, which needs no nftables) when its rules or routes are refused, when they
cannot be looked at for a while, or when somebody undoes them again and again. It comes back by
itself with the next run that succeeds. The machine's own namespace has no link to take down.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from metalmesh.errors import CaptureError, MetalmeshError, NetworkError
from metalmesh.net.netlink import open_netlink
from metalmesh.node.links import LinkPlan
from metalmesh.node.netns import repair

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.node.config import NodeConfig
    from metalmesh.node.metrics import NodeMetrics
    from metalmesh.node.state import NodeState
    from metalmesh.node.workload_spec import LocalWorkload

#: runs in a row that could not even look; the reconciler tries once a second
MAX_BLIND_RUNS: Final = 3
#: repairs within these seconds that make a fight of it, and seconds the workload is kept off then
MAX_REPAIRS: Final = 10
REPAIR_WINDOW_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 30.0


class Guard:
    """Call it to repair; it raises what keeps the workload from being captured."""

    def __init__(
        self,
        workload: LocalWorkload,
        config: NodeConfig,
        state: NodeState,
        metrics: NodeMetrics,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workload = workload
        self._config = config
        self._state = state
        self._metrics = metrics
        self._now = now
        self._blind_runs = 0
        self._repairs: deque[float] = deque(maxlen=MAX_REPAIRS)
        self._paused_until = 0.0

    def __call__(self) -> list[str]:
        """Look and repair; return what was changed."""
        if self._now() < self._paused_until:
            raise NetworkError(self._fight())
        try:
            changes = repair(self._workload, self._config, self._state)
        except CaptureError as error:
            raise NetworkError(f"{error}{self._cut_off()}") from error
        except (MetalmeshError, OSError) as error:
            self._blind_runs += 1
            if self._blind_runs < MAX_BLIND_RUNS:
                raise
            raise NetworkError(f"{error}{self._cut_off()}") from error
        self._blind_runs = 0
        if any(change.startswith("redirection rules") for change in changes):
            self._count_repair()
        return changes

    def _count_repair(self) -> None:
        now = self._now()
        self._repairs.append(now)
        often = len(self._repairs) == MAX_REPAIRS
        if often and now - self._repairs[0] < REPAIR_WINDOW_SECONDS:
            self._repairs.clear()
            self._paused_until = now + PAUSE_SECONDS
            raise NetworkError(f"{self._fight()}{self._cut_off()}")

    def _fight(self) -> str:
        return (
            f"netns {self._workload.netns}: somebody undoes its redirection again and again "
            f"({MAX_REPAIRS} times within {REPAIR_WINDOW_SECONDS:.0f} s); find out who; it is put "
            f"back every {PAUSE_SECONDS:.0f} s"
        )

    def _cut_off(self) -> str:
        """Take the link down; what to say about it."""
        workload = self._workload
        if workload.is_host or not workload.captured:
            return ""
        with self._state.locked(), open_netlink() as node:
            link = node.link(LinkPlan(workload.netns, ()).host_link)
            if link is not None and link.up:
                node.set_state(link.index, up=False)
                self._metrics.cut_offs.inc((workload.uid,))
        return "; the workload is cut off from the network until then"
