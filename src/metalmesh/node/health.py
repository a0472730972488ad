"""Which workloads of this node may get traffic: probes, and applications that are about to stop.

What is not well is told to the control plane, which takes it out of its services everywhere.
Workloads without a probe are well. An application announces its end before it ends
(``metalmesh node workload drain``); a file per such workload, gone after a reboot, remembers that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from metalmesh.errors import MetalmeshError, StoreError
from metalmesh.node.prober import run_probe
from metalmesh.node.state import write_file
from metalmesh.routing.health import ProbeState
from metalmesh.service.backoff import Backoff
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from metalmesh.node.enrolment import Enrolment
    from metalmesh.node.metrics import NodeMetrics
    from metalmesh.node.workload_spec import LocalWorkload

    class Send(Protocol):
        """Delivers a report."""

        async def __call__(self, unhealthy: Mapping[str, str], *, wait: bool) -> bool:
            """With ``wait``, return whether everybody has confirmed the consequences."""


#: uid to why it is not well
Unhealthy = dict[str, str]

STOPPING: Final = "its application stops"
_RETRY_MAX_SECONDS: Final = 5.0

log = Log("metalmesh.node.health")


@dataclass(slots=True)
class _Probed:
    """A workload with a probe and the task that runs it."""

    workload: LocalWorkload
    state: ProbeState
    task: asyncio.Task[None]


class HealthKeeper:
    """Probes workloads and reports; ``send`` delivers a whole report to the control plane."""

    def __init__(
        self,
        run_dir: Path,
        enrolment: Enrolment,
        send: Send,
        metrics: NodeMetrics,
    ) -> None:
        self._drained_dir = run_dir / "drained"
        self._saved = run_dir / "health.json"
        self._enrolment = enrolment
        self._send = send
        self._metrics = metrics
        self._probed: dict[str, _Probed] = {}
        self._remembered = self._load()
        self._wake = asyncio.Event()

    # --- what is known -----------------------------------------------------------------------
    def unhealthy(self) -> Unhealthy:
        """Everything that must get no traffic, and why."""
        found: Unhealthy = {}
        drained = self._drained()
        for name, workload in self._enrolment.declared.items():
            probed = self._probed.get(name)
            if name in drained:
                found[workload.uid] = STOPPING
            elif probed is not None and not probed.state.healthy:
                found[workload.uid] = f"probe: {probed.state.error or 'no result yet'}"
        return found

    def status(self) -> list[dict[str, Any]]:
        """For the debug page."""
        return [
            {
                "netns": name,
                "healthy": item.state.healthy,
                "error": item.state.error,
                "periodSeconds": item.state.probe.period_seconds,
            }
            for name, item in sorted(self._probed.items())
        ]

    def _drained(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return {path.name for path in self._drained_dir.iterdir()}
        return set()

    # --- workloads come and go ---------------------------------------------------------------
    def refresh(self) -> None:
        """Begin to probe new workloads, end with those that went or changed."""
        declared = self._enrolment.declared
        for name, item in list(self._probed.items()):
            if declared.get(name) != item.workload:
                item.task.cancel()
                del self._probed[name]
        for name, workload in declared.items():
            if workload.probe is not None and name not in self._probed:
                self._begin(name, workload)
        self.changed()

    def _begin(self, name: str, workload: LocalWorkload) -> None:
        assert workload.probe is not None
        loop = asyncio.get_running_loop()
        was_healthy = name in self._remembered
        state = ProbeState(workload.probe, loop.time(), healthy=was_healthy)
        task = loop.create_task(self._probe(workload, state))
        self._probed[name] = _Probed(workload, state, task)

    async def _probe(self, workload: LocalWorkload, state: ProbeState) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, state.due_at - loop.time()))
            error = await run_probe(state.probe, workload)
            self._metrics.probes.inc((workload.uid, "failed" if error else "succeeded"))
            if state.record(error, loop.time()):
                fields = {"uid": workload.uid, **({"error": error} if error else {})}
                log.info("healthy" if state.healthy else "unhealthy", fields)
                self._save()
                self.changed()

    def _load(self) -> set[str]:
        """Who was well when the last agent ran: a restart must not take anybody out."""
        with contextlib.suppress(OSError, ValueError):
            return set(json.loads(self._saved.read_text()))
        return set()

    def _save(self) -> None:
        names = sorted(name for name, item in self._probed.items() if item.state.healthy)
        try:
            write_file(self._saved, json.dumps(names).encode())
        except StoreError as error:
            log.error("health is not remembered", {"error": str(error)})

    # --- reporting ---------------------------------------------------------------------------
    def changed(self) -> None:
        """Report soon."""
        self._metrics.unhealthy.set(len(self.unhealthy()))
        self._wake.set()

    async def settle(self) -> bool:
        """Report now; true when every proxy of the mesh has confirmed the consequences."""
        return await self._send(self.unhealthy(), wait=True)

    async def run(self) -> None:
        """Report changes until cancelled; what could not be delivered is tried again."""
        backoff = Backoff(0.2, _RETRY_MAX_SECONDS)
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._send(self.unhealthy(), wait=False)
                backoff.reset()
            except (MetalmeshError, OSError) as error:
                log.debug("health not reported yet", {"error": str(error)})
                self._wake.set()
                await asyncio.sleep(backoff.next_delay())

    def close(self) -> None:
        """End every probe."""
        for item in self._probed.values():
            item.task.cancel()
        self._probed.clear()
