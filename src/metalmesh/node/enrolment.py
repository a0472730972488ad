"""Which workloads of this node are served: declared by a spec, up by ``netns up``, captured.

A spec that goes away takes the workload from the ztunnel and leaves its netns as it is, redirected:
what still runs in there is refused, not let out in the clear. A workload that stops being captured
(``dataplane-mode: none``) loses its redirection first and the ztunnel after that.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from metalmesh.errors import MetalmeshError, StoreError
from metalmesh.net.netns import open_netns
from metalmesh.net.watch import DirectoryWatch, NetworkWatch
from metalmesh.node.guard import Guard
from metalmesh.node.netns import netns_path
from metalmesh.node.workload_spec import LoadedSpecs, load_directory
from metalmesh.service.logs import Log
from metalmesh.zds.messages import AddWorkload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from metalmesh.model.workload import IPAddress
    from metalmesh.node.config import NodeConfig
    from metalmesh.node.metrics import NodeMetrics
    from metalmesh.node.reconciler import Reconciler
    from metalmesh.node.state import NetnsRecord, NodeState
    from metalmesh.node.workload_spec import LocalWorkload
    from metalmesh.node.zds_shell import ZdsShell

#: a file and the record that belongs to it often come within milliseconds
_DEBOUNCE_SECONDS: Final = 0.02
#: the directories are read again now and then, should the kernel have lost an event
_RESCAN_SECONDS: Final = 10.0

log = Log("metalmesh.node.enrolment")


class Enrolment:
    """Follows the spec directory and the records of ``netns up``."""

    def __init__(
        self,
        config: NodeConfig,
        state: NodeState,
        zds: ZdsShell,
        reconciler: Reconciler,
        metrics: NodeMetrics,
    ) -> None:
        self._config = config
        self._state = state
        self._zds = zds
        self._reconciler = reconciler
        self._metrics = metrics
        self._specs = LoadedSpecs({}, ())
        self._records: Mapping[str, NetnsRecord] = {}
        self._served: dict[str, tuple[AddWorkload, str, int]] = {}
        self._watches: dict[str, tuple[int, NetworkWatch]] = {}
        self._reported: frozenset[str] = frozenset()
        self._unknown: frozenset[str] = frozenset()
        #: called when the set of namespaces that are up, or what is captured, has changed
        self.on_change: Callable[[], None] = lambda: None

    # --- what others ask --------------------------------------------------------------------
    @property
    def declared_uids(self) -> frozenset[str]:
        """Uids of all valid specs."""
        return frozenset(item.uid for item in self._specs.workloads.values())

    @property
    def declared(self) -> Mapping[str, LocalWorkload]:
        """Every valid spec, by the name of its netns."""
        return self._specs.workloads

    def captured_addresses(self) -> dict[IPAddress, str]:
        """Addresses of workloads whose redirection lets our probes pass, with their uids."""
        return {
            address: record.uid
            for record in self._records.values()
            if record.captured and record.link
            for address in record.ip_addresses
        }

    def uncaptured_addresses(self) -> list[IPAddress]:
        """Addresses of workloads that use virtual addresses through the node."""
        return [
            address
            for record in self._records.values()
            if not record.captured and record.link
            for address in record.ip_addresses
        ]

    def report_unknown(self, known_uids: frozenset[str]) -> None:
        """Say which workloads are closed because the control plane does not place them here."""
        unknown = frozenset(item.uid for item in self._records.values()) - known_uids
        for uid in sorted(unknown - self._unknown):
            log.warning(
                "the control plane does not place this workload on this node, it stays closed",
                {"uid": uid, "node": self._config.node_name},
            )
        self._unknown = unknown
        self._metrics.workloads.set(len(unknown), ("unknown",))

    def namespace_of(self, address: IPAddress) -> str:
        """Namespace of the local workload with this address; "" when there is none."""
        for workload in self._specs.workloads.values():
            if address in workload.addresses:
                return workload.namespace
        return ""

    # --- following -------------------------------------------------------------------------
    async def run(self) -> None:
        """Follow the directories until cancelled; :meth:`refresh` must have run once."""
        loop = asyncio.get_running_loop()
        watch = DirectoryWatch(self._config.workloads_dir, self._state.netns_dir)
        wake = asyncio.Event()
        loop.add_reader(watch.fileno(), wake.set)
        wake.set()  # whatever came up between the first refresh and this watch is looked at now
        try:
            while True:
                try:
                    async with asyncio.timeout(_RESCAN_SECONDS):
                        await wake.wait()
                    await asyncio.sleep(_DEBOUNCE_SECONDS)
                except TimeoutError:
                    pass  # time to look anyway
                wake.clear()
                watch.drain()
                self.refresh()
        finally:
            loop.remove_reader(watch.fileno())
            watch.close()
            for name in list(self._watches):
                self._unwatch(name)

    def refresh(self) -> None:
        """Read specs and records again; declare a job per netns that is up."""
        try:
            records = self._state.records(must_exist=True)
            running = {name: (record.uid,) for name, record in records.items()}
            specs = load_directory(
                self._config.workloads_dir,
                self._config.cluster_id,
                running,
                self._specs.by_file,
            )
        except StoreError as error:
            self._report_errors((error,))
            return  # what was known goes on
        self._report_errors(specs.errors)
        before, self._specs = self._specs.workloads, specs
        changed = records != self._records or specs.workloads != before
        self._records = records
        for name in {*before, *self._watches} - {
            name for name in specs.workloads if name in records
        }:
            self._forget(name)
        for name, workload in specs.workloads.items():
            if name in records:
                self._follow(name, workload, is_new=before.get(name) != workload)
        if changed:
            self.on_change()
        self._count()

    def _follow(self, name: str, workload: LocalWorkload, *, is_new: bool) -> None:
        inode = self._records[name].inode
        if self._watches.get(name, (0, None))[0] != inode:
            self._unwatch(name)
            self._watch(name, inode)
            is_new = True
        if is_new:
            guard = Guard(workload, self._config, self._state, self._metrics)
            self._reconciler.set_job(f"netns:{name}", guard)
        else:
            self.serve(name)

    def serve(self, name: str) -> None:
        """The netns is as it should be: have the ztunnel serve its workload, or stop."""
        record, workload = self._records.get(name), self._specs.workloads.get(name)
        served = self._served.get(name)
        wanted = None
        if record is not None and workload is not None and workload.captured:
            add = AddWorkload(
                workload.uid, workload.name, workload.namespace, workload.service_account
            )
            wanted = (add, name, record.inode)
        if served == wanted:
            return
        if served is not None:
            del self._served[name]
            self._zds.remove(served[0].uid)
        if wanted is not None:
            self._served[name] = wanted
            self._zds.add(*wanted)
        self._count()

    def _forget(self, name: str) -> None:
        self._reconciler.drop_job(f"netns:{name}")
        self._unwatch(name)
        served = self._served.pop(name, None)
        if served is not None:
            self._zds.remove(served[0].uid)
            log.info("workload left", {"netns": name, "uid": served[0].uid})

    # --- drift inside a netns ----------------------------------------------------------------
    def _watch(self, name: str, inode: int) -> None:
        try:
            watch = _network_watch(name)
        except MetalmeshError as error:
            # the job fails for the same reason and is tried again
            log.warning("netns cannot be watched", {"netns": name, "error": str(error)})
            return
        loop = asyncio.get_running_loop()

        def on_event() -> None:
            watch.drain()
            self._reconciler.look(f"netns:{name}")

        for sock in watch.sockets:
            loop.add_reader(sock, on_event)
        self._watches[name] = (inode, watch)

    def _unwatch(self, name: str) -> None:
        """Also lets go of the namespace: an open socket would keep it alive."""
        _, watch = self._watches.pop(name, (0, None))
        if watch is not None:
            loop = asyncio.get_running_loop()
            for sock in watch.sockets:
                loop.remove_reader(sock)
            watch.close()

    # --- reporting -------------------------------------------------------------------------
    def _report_errors(self, errors: Iterable[MetalmeshError]) -> None:
        texts = frozenset(str(error) for error in errors)
        for text in sorted(texts - self._reported):
            log.error("workload spec refused", {"error": text})
        self._reported = texts
        self._metrics.spec_errors.set(len(texts))

    def _count(self) -> None:
        served = {item[0].uid for item in self._served.values()}
        self._metrics.workloads.set(len(self._specs.workloads), ("declared",))
        self._metrics.workloads.set(len(self._records), ("up",))
        self._metrics.workloads.set(len(served), ("captured",))
        self._metrics.workloads.set(len(served & self._zds.acknowledged), ("served",))


def _network_watch(name: str) -> NetworkWatch:
    fd = open_netns(netns_path(name))
    try:
        return NetworkWatch(fd)
    finally:
        os.close(fd)
