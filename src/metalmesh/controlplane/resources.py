"""Keeps what is served in step with the store."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from metalmesh.controlplane.admission import admit
from metalmesh.controlplane.compute import Computation, compute
from metalmesh.controlplane.snapshot import Admission, changed_names
from metalmesh.controlplane.status import object_status
from metalmesh.controlplane.watcher import StoreWatcher
from metalmesh.errors import StoreError
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from metalmesh.controlplane.compute import ComputeOptions
    from metalmesh.controlplane.metrics import ControlPlaneMetrics
    from metalmesh.controlplane.snapshot import Snapshot
    from metalmesh.controlplane.state import StateDirectory
    from metalmesh.controlplane.store import DirectoryStore

log = Log("metalmesh.controlplane.resources")

SAVE_RETRY_SECONDS: Final = 2.0


class ResourceKeeper:
    """The objects in force and what is computed from them."""

    def __init__(
        self,
        store: DirectoryStore,
        state: StateDirectory,
        options: ComputeOptions,
        metrics: ControlPlaneMetrics,
        publish: Callable[[Mapping[str, frozenset[str]]], None],
    ) -> None:
        self._store = store
        self._state = state
        self._options = options
        self._metrics = metrics
        self._publish = publish
        self.admission = Admission({})
        self.computation = Computation()
        self._health: dict[str, Mapping[str, str]] = {}
        self._reported: frozenset[str] = frozenset()
        self._save_wanted = asyncio.Event()

    @property
    def snapshot(self) -> Snapshot:
        """What is served now."""
        return self.computation.snapshot

    def restore(self) -> None:
        """Begin with what was in force when the service last ran."""
        objects, errors = self._state.load_objects()
        for error in errors:
            log.warning("saved object is no longer valid", {"error": str(error)})
        self.admission = Admission(objects, tuple(errors))
        self.computation = Computation(vips=self._state.load_vips())
        self._health.update(self._state.load_health())

    def set_health(self, node: str, unhealthy: Mapping[str, str]) -> None:
        """Take over what a node says of its workloads; uids that are not its own mean nothing."""
        if self._health.get(node, {}) == unhealthy:
            return
        self._health[node] = dict(unhealthy)
        if not unhealthy:
            del self._health[node]
        self._recompute()
        self._save_wanted.set()

    def refresh(self) -> None:
        """Read the store and bring everything up to date."""
        started = time.monotonic()
        scan = self._store.scan()
        self._metrics.scans.inc()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before, admission = self.admission, admit(scan, self.admission.objects, now)
        self.admission = admission
        self._metrics.unreadable.set(len(scan.unreadable))
        self._report_errors()
        changed = not _same_objects(before, admission)
        if changed or not self.computation.snapshot.types:
            self._recompute()
            self._metrics.update_seconds.observe(time.monotonic() - started)
        if not _same_files(before, admission):
            self._save_wanted.set()

    def _recompute(self) -> None:
        old = self.computation
        self.computation = compute(self.admission.objects, self._options, old, self._health)
        changes = changed_names(old.snapshot, self.computation.snapshot)
        kinds = Counter(item.id.split(" ")[0] for item in self.admission.objects.values())
        self._metrics.objects.clear()
        for kind, count in kinds.items():
            self._metrics.objects.set(count, (kind,))
        log.info(
            "resources computed",
            {
                "objects": len(self.admission.objects),
                "changed": sum(map(len, changes.values())),
            },
        )
        if changes:
            self._publish(changes)

    def _report_errors(self) -> None:
        """Log each error once, when it appears."""
        found = frozenset(map(str, self.admission.errors))
        for text in sorted(found - self._reported):
            log.warning("resource refused", {"error": text})
        for _ in self._reported - found:
            log.info("resource error resolved")
        self._reported = found
        self._metrics.refused.set(len(found))
        self._metrics.outdated.set(len(self.admission.outdated))

    def save(self) -> bool:
        """Write the state; without a working disk the control plane goes on serving."""
        admission, computation = self.admission, self.computation
        try:
            self._state.save_objects(admission.objects)
            self._state.save_vips(computation.vips)
            self._state.save_health(dict(self._health))
            self._state.save_status(object_status(admission, computation.conditions))
        except StoreError as error:
            self._metrics.state_failures.inc()
            log.error("state not saved", {"error": str(error)})
            return False
        return True

    async def keep_saved(self) -> None:
        """Save after changes, in a thread: a slow disk must not delay what is served."""
        self._save_wanted.set()
        while True:
            await self._save_wanted.wait()
            self._save_wanted.clear()
            if not await asyncio.to_thread(self.save):
                self._save_wanted.set()
                await asyncio.sleep(SAVE_RETRY_SECONDS)

    def status(self) -> dict[str, Any]:
        """Every object and error with its conditions."""
        return object_status(self.admission, self.computation.conditions)

    async def run(self) -> None:
        """Follow the store for ever."""
        watcher = StoreWatcher(self._store.directory)
        try:
            while True:
                if not watcher.watch(self._store.directories):
                    await watcher.wait()
                self.refresh()
                await asyncio.sleep(0)
        finally:
            watcher.close()


def _same_objects(one: Admission, other: Admission) -> bool:
    return one.objects.keys() == other.objects.keys() and all(
        one.objects[key].resource is item.resource for key, item in other.objects.items()
    )


def _same_files(one: Admission, other: Admission) -> bool:
    """Whether nothing that is saved changed: objects, where they are, errors."""
    return (
        one.errors == other.errors
        and one.outdated == other.outdated
        and one.objects.keys() == other.objects.keys()
        and all(one.objects[key] is item for key, item in other.objects.items())
    )
