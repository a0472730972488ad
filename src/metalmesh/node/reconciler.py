"""Keeps what was put in force in force: jobs that make the live state the wanted one.

A job is idempotent and returns what it changed. It runs when its input changed, when the kernel
reports a change, when it failed before, and once in a while anyway (one job per interval, so that
idle costs stay the same however many workloads there are). Jobs run one at a time in one thread.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from metalmesh.errors import MetalmeshError
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.node.metrics import NodeMetrics

    Job = Callable[[], list[str]]

#: events come in bursts; the second look also finds what changed during the first
_DEBOUNCE_SECONDS: Final = 0.03
_RETRY_SECONDS: Final = 1.0
#: a job looks at most this often for events, which another program may cause all the time
_REST_SECONDS: Final = 1.0

log = Log("metalmesh.node.reconcile")


class Reconciler:
    """Jobs by name; names of the same kind share their part before the colon."""

    def __init__(self, interval_seconds: float, metrics: NodeMetrics) -> None:
        self._interval_seconds = interval_seconds
        self._metrics = metrics
        self._jobs: dict[str, Job] = {}
        #: name -> whether the input changed (what is changed then is no drift)
        self._due: dict[str, bool] = {}
        self._failed: dict[str, str] = {}
        self._looked_at: dict[str, float] = {}
        self._later: set[str] = set()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._swept = 0
        self._executor = ThreadPoolExecutor(1, "network")
        self.on_done: Callable[[str], None] = lambda _: None

    def set_job(self, name: str, job: Job) -> None:
        """Declare or replace a job and have it run."""
        self._jobs[name] = job
        self.changed(name)

    def drop_job(self, name: str) -> None:
        """Forget a job."""
        self._jobs.pop(name, None)
        self._due.pop(name, None)
        self._failed.pop(name, None)
        self._looked_at.pop(name, None)

    def changed(self, name: str) -> None:
        """The input of a job has changed."""
        self._mark(name, changed=True)

    def look(self, kind: str) -> None:
        """Somebody may have changed what jobs of this kind, or of this name, put in force."""
        loop = asyncio.get_running_loop()
        for name in self._jobs:
            if name in self._due or kind not in (name, name.partition(":")[0]):
                continue
            rested_at = self._looked_at.get(name, 0.0) + _REST_SECONDS
            if rested_at <= loop.time():
                self._mark(name, changed=False)
            elif name not in self._later:
                self._later.add(name)
                loop.call_at(rested_at, self._look_later, name)

    def _look_later(self, name: str) -> None:
        self._later.discard(name)
        if name in self._jobs:
            self._mark(name, changed=False)

    def _mark(self, name: str, *, changed: bool) -> None:
        self._due[name] = changed or self._due.get(name, False)
        self._idle.clear()
        self._wake.set()

    @property
    def failing(self) -> dict[str, str]:
        """Jobs whose last run failed, and why."""
        return dict(self._failed)

    async def wait_idle(self) -> None:
        """Wait until every job that was due has run."""
        await self._idle.wait()

    async def call(self, function: Callable[[], list[str]]) -> list[str]:
        """Run something else in the network thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def run(self) -> None:
        """Run jobs until cancelled."""
        try:
            while True:
                while self._due:
                    name = next(iter(self._due))
                    await self._run_job(name, changed=self._due.pop(name))
                self._idle.set()
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._interval_seconds):
                        await self._wake.wait()
                    await asyncio.sleep(_DEBOUNCE_SECONDS)
                except TimeoutError:
                    self._sweep()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _sweep(self) -> None:
        """Have the next job in turn look at its object."""
        names = list(self._jobs)
        if names:
            self._swept = (self._swept + 1) % len(names)
            self._mark(names[self._swept], changed=False)

    async def _run_job(self, name: str, *, changed: bool) -> None:
        job = self._jobs.get(name)
        if job is None:
            return
        kind = name.partition(":")[0]
        started_at = self._looked_at[name] = asyncio.get_running_loop().time()
        try:
            changes = await self.call(job)
        except (MetalmeshError, OSError) as error:
            self._metrics.network_errors.inc((kind,))
            if self._failed.get(name) != str(error):
                log.error("not in force", {"object": name, "error": str(error)})
            self._failed[name] = str(error)
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._retry, name, changed)
            return
        if self._failed.pop(name, None) is not None:
            log.info("in force again", {"object": name})
        if changes:
            self._report(name, kind, changes, drift=not changed)
            elapsed = asyncio.get_running_loop().time() - started_at
            self._metrics.apply_seconds.observe(elapsed, (kind,))
        self.on_done(name)

    def _retry(self, name: str, changed: bool) -> None:
        if name in self._jobs:
            self._mark(name, changed=changed)

    def _report(self, name: str, kind: str, changes: list[str], *, drift: bool) -> None:
        if drift:
            self._metrics.repairs.inc((kind,))
            log.warning("somebody changed it, restored", {"object": name, "what": changes})
        else:
            log.info("put in force", {"object": name, "what": changes})
