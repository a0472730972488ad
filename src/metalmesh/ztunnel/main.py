"""The main process of the ztunnel: state and decisions; the data workers do the I/O.

Nothing here is on the path of a byte. If this process dies the workers go on; systemd starts it
again, listening sockets and workers come back from the fd store.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from typing import TYPE_CHECKING, Final

from metalmesh.constants import TYPE_AUTHORITY
from metalmesh.errors import MetalmeshError, NetworkError
from metalmesh.service.ca_client import CaClient
from metalmesh.service.logs import Log
from metalmesh.service.metrics import Registry
from metalmesh.service.systemd import Notifier, received_fds
from metalmesh.service.xds_client import XdsClient, XdsMetrics
from metalmesh.xds.delta_client import DeltaClient
from metalmesh.ztunnel import messages
from metalmesh.ztunnel.certificates import CertificateKeeper
from metalmesh.ztunnel.dns import DnsProxy
from metalmesh.ztunnel.handover import PREPARE_SECONDS, Estate, Incumbent
from metalmesh.ztunnel.locals import DescriptorStore, LocalWorkload, netns_identity
from metalmesh.ztunnel.mesh import SUBSCRIPTIONS, MeshView
from metalmesh.ztunnel.revocations import RevocationKeeper
from metalmesh.ztunnel.saved import SavedState, SavedWorkloads
from metalmesh.ztunnel.servers import Servers
from metalmesh.ztunnel.telemetry import MainMetrics, WorkerSeries
from metalmesh.ztunnel.upstream import (
    certificate_authority,
    control_plane,
    external_ca,
    node_info,
)
from metalmesh.ztunnel.workers import WorkerPool
from metalmesh.ztunnel.zds import ZdsClient

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

    from metalmesh.xds.delta_client import Update
    from metalmesh.zds.messages import AddWorkload
    from metalmesh.ztunnel.config import ZtunnelConfig
    from metalmesh.ztunnel.handover import Predecessor
    from metalmesh.ztunnel.process import Worker
    from metalmesh.ztunnel.saved import SavedWorkload

STATUS_INTERVAL_SECONDS: Final = 10.0
READY_POLL_SECONDS: Final = 0.01
#: how often the counters of the workers are fetched, so that little is lost when one dies
COLLECT_INTERVAL_SECONDS: Final = 15.0

log = Log("metalmesh.ztunnel")


class Ztunnel:
    """Puts the parts together; implements what the worker pool and the ZDS client ask for.

    With a ``predecessor`` it serves beside that process first and then takes over from it.
    """

    def __init__(self, config: ZtunnelConfig, predecessor: Predecessor | None = None) -> None:
        self.config = config
        self._predecessor = predecessor
        self.notifier = Notifier()
        self.registry = Registry()
        self.metrics = MainMetrics(self.registry)
        self.series = WorkerSeries()
        self.pool = WorkerPool(config.workers, self)
        self.mesh = MeshView(config, self.pool.broadcast, self._want_identities, self.registry)
        self.dns = DnsProxy(config, self.mesh, self.registry)
        self.xds_state = DeltaClient(node_info(config), SUBSCRIPTIONS, self._on_update)
        self.saved = SavedState(config.state_dir, self.xds_state)
        self.saved_workloads = SavedWorkloads(config.state_dir)
        self.ca = CaClient(certificate_authority(config))
        self.certificates = CertificateKeeper(
            self.ca, config.secret_ttl_seconds, self.pool.broadcast
        )
        self.revocations = RevocationKeeper(config.crl_path, self.registry, self.pool.broadcast)
        self.xds = XdsClient(
            control_plane(config, config.xds_address),
            self.xds_state,
            XdsMetrics(self.registry),
            on_connected=self.certificates.retry_now,
        )
        self.zds = ZdsClient(config.zds_socket, self)
        inherited = received_fds() if predecessor is None else predecessor.descriptors
        self.descriptors = DescriptorStore(self.notifier, inherited)
        self.stop_requested = asyncio.Event()
        estate = Estate(
            descriptors=self._descriptors,
            certificates=self.certificates.held,
            workloads=self._served,
            state=self.xds_state.save,
            leave=self.stop_requested.set,
        )
        self.incumbent = Incumbent(config.handover_socket, estate, self.notifier)
        self._handing_over = False
        #: whether this is the unit's main process: only that one writes state
        self._in_charge = predecessor is None
        self._tasks: list[asyncio.Task[None]] = []

    # --- life --------------------------------------------------------------------------------
    async def run(self) -> None:
        """Serve until asked to stop, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop_requested.set)
        loop.add_signal_handler(signal.SIGHUP, self._request_handover)
        if self._predecessor is not None:
            for certificate in self._predecessor.certificates:
                self.certificates.adopt(certificate)
        self.saved.restore(b"" if self._predecessor is None else self._predecessor.state)
        self.mesh.add_local()
        self.revocations.refresh()
        self.pool.start()
        servers = Servers(self)
        if self._predecessor is None:
            await servers.listen()
        await self._resume_workloads()
        self._adopt_workers()  # not before: they may ask about their workloads at once
        self.pool.retire_adopted(self._drain_deadline)
        self._start(self.pool.watch())
        self._start(self.certificates.run())
        self._start(self.revocations.run())
        if self.config.xds_address:
            self._start(self.xds.run())
        if self._predecessor is not None:
            await self._take_over(self._predecessor)
            await servers.listen()
        self._start(self.zds.run())
        self._start(self._collect_regularly())
        self._start(self._report_to_systemd())
        self.notifier.ready(self.status())
        self.incumbent.listen()
        if self._predecessor is not None:
            self._predecessor.on_taken_over()
        log.info("started", {"node": self.config.node_name, "workers": self.config.workers})
        await self._wait_for_end()
        await self._leave(servers)
        log.info("stopped")

    async def _leave(self, servers: Servers) -> None:
        """The end: hand over, or drain."""
        self.incumbent.close()
        workers: list[Worker] = []
        await self.dns.finish()
        if self.incumbent.channel is not None:
            await self.mesh.finish_lookups()
            workers = await self.pool.hand_over(self._drain_deadline)
        elif self._handing_over:
            await self._hand_over()
        else:
            self.notifier.stopping()
            log.info("draining", {"deadline_seconds": self.config.stop_deadline_seconds})
            await self.pool.drain(self.config.stop_deadline_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await servers.close()
        await self.ca.close()
        await self.saved.close()
        if self.incumbent.channel is not None:
            await self.incumbent.hand_over(workers)

    # --- one main process after the other ----------------------------------------------------
    async def _take_over(self, predecessor: Predecessor) -> None:
        """Take over as soon as every worker serves; the predecessor leaves meanwhile."""
        async with asyncio.timeout(PREPARE_SECONDS):
            while not self.pool.ready:
                await asyncio.sleep(READY_POLL_SECONDS)
        self.descriptors.receive(await predecessor.take_over())
        self._adopt_workers()
        self._in_charge = True
        for worker in self.pool.workers:
            self.descriptors.store_worker(worker.pid, worker.channel.fileno())
        self.saved.changed()
        self._workloads_changed()

    def _adopt_workers(self) -> None:
        for pid, fd in self.descriptors.take_workers():
            if not self.pool.adopt(pid, fd):
                self.descriptors.forget_worker(pid)
        if self.revocations.message.keys:
            self.pool.broadcast(self.revocations.message)

    @property
    def _drain_deadline(self) -> float:
        return self.config.drain_deadline_seconds or math.inf

    def _served(self) -> Iterable[SavedWorkload]:
        return ((local.info, local.netns_id) for local in self.mesh.locals.values())

    def _descriptors(self) -> Iterable[tuple[str, int]]:
        for local in self.mesh.locals.values():
            yield from local.named_fds

    def _request_handover(self) -> None:
        """SIGHUP: make room for a new main process without ending a connection.

        Needs systemd (``Restart=always``, ``KillMode=process``, an fd store) to start it.
        """
        if not self.notifier.enabled:
            log.warning("no handover: not run by systemd")
            return
        self._handing_over = True
        self.stop_requested.set()

    async def _hand_over(self) -> None:
        workers = await self.pool.hand_over(self._drain_deadline)
        log.info("handing over", {"workers": len(workers)})

    async def _resume_workloads(self) -> None:
        """Go on with what the last process served, as far as its namespaces are still there."""
        before = self._predecessor
        for workload, netns_id in self.saved_workloads.read() if not before else before.workloads:
            fd = self.descriptors.netns(netns_id)
            if fd is None:
                continue
            try:
                await self.serve(workload, fd)
            except (MetalmeshError, OSError) as error:
                if before:
                    raise  # better the old process than one that serves less
                log.error("workload not resumed", {"uid": workload.uid, "error": str(error)})

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _wait_for_end(self) -> None:
        """Until asked to stop; a part that fails ends the process, and systemd starts it anew."""
        stop = asyncio.ensure_future(self.stop_requested.wait())
        done, _ = await asyncio.wait({stop, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stop}:
            task.result()

    async def _report_to_systemd(self) -> None:
        """Feed the watchdog and keep the status line current, from the loop that does the work."""
        watchdog = self.notifier.watchdog_interval_seconds()
        interval = min(watchdog or STATUS_INTERVAL_SECONDS, STATUS_INTERVAL_SECONDS)
        while True:
            if watchdog:
                self.notifier.watchdog()
            self.notifier.status(self.status())
            await asyncio.sleep(interval)

    async def _collect_regularly(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_INTERVAL_SECONDS)
            await self.collect_metrics()

    async def collect_metrics(self) -> None:
        """Fetch the counters of every worker."""
        for worker, reply in await self.pool.collect("metrics"):
            if isinstance(reply, messages.MetricsReply):
                self.series.report(worker.pid, reply.series)

    def status(self) -> str:
        """One line for ``systemctl status``."""
        pending = self.pending()
        state = f"not ready, pending: {', '.join(pending)}" if pending else "ready"
        plane = "connected" if self.xds.connected else "not connected"
        return f"{state}; {len(self.mesh.locals)} workloads; control plane {plane}"

    def pending(self) -> list[str]:
        """What readiness still waits for (istio-facts 8.4)."""
        names = []
        alone = self.config.local_xds_path and not self.config.xds_address
        if not (self.xds_state.synced or alone):
            names.append("state manager")
        if not (self.zds.synced and not self.zds.pending and self.pool.ready):
            names.append("workload proxy manager")
        return names

    # --- from the control plane ----------------------------------------------------------------
    def _on_update(self, update: Update) -> Mapping[str, str]:
        if update.type_url == TYPE_AUTHORITY:
            if not external_ca(self.config):
                for authority in update.changed.values():
                    self.certificates.expect(authority)
        else:
            self.mesh.on_update(update)
        if not update.restored and self._in_charge:
            self.saved.changed()
        return {}

    def _want_identities(self, identities: set[str]) -> None:
        self.certificates.set_wanted(identities)

    # --- from the node agent -------------------------------------------------------------------
    async def serve(self, workload: AddWorkload, netns_fd: int) -> None:
        """Serve a workload; takes ``netns_fd`` over, also when it fails."""
        identity = netns_identity(netns_fd)
        known = self.mesh.locals.get(workload.uid)
        if known is not None and known.netns_id == identity and known.info == workload:
            os.close(netns_fd)
            return
        self.remove(workload.uid)
        try:
            self._check_unserved(workload.uid, identity)
            sockets = self.descriptors.open(netns_fd, dns=self.config.dns_proxy)
        except BaseException:
            os.close(netns_fd)
            raise
        local = LocalWorkload(workload, netns_fd, identity, sockets)
        self.mesh.add(local)
        error = await self.pool.add_workload(local.view.added(workload), local.fds)
        if error:
            self.remove(workload.uid)
            raise NetworkError(f"workload {workload.uid}: {error}")
        await self.dns.serve(local)
        self.metrics.started.inc()
        self._workloads_changed()
        log.info("serving", {"uid": workload.uid, "identity": local.view.identity})

    def _check_unserved(self, uid: str, netns_id: tuple[int, int]) -> None:
        """One namespace has one identity; the kernel would share its ports among several."""
        for other in self.mesh.locals.values():
            if other.netns_id == netns_id:
                raise NetworkError(
                    f"workload {uid}: its network namespace is served for workload "
                    f"{other.info.uid} already; remove that one first"
                )

    def remove(self, uid: str) -> None:
        """Stop serving a workload at once."""
        local = self.mesh.remove(uid)
        if local is None:
            return
        self.pool.broadcast(messages.RemoveWorkload(uid=uid))
        self.dns.stop(uid)
        self.descriptors.release(local.netns_id)
        local.close()
        self.metrics.stopped.inc()
        self._workloads_changed()
        log.info("no longer serving", {"uid": uid})

    def retain(self, uids: frozenset[str]) -> None:
        """Stop serving everything else."""
        for uid in self.mesh.locals.keys() - uids:
            self.remove(uid)
        self.descriptors.release_unclaimed()

    def _workloads_changed(self) -> None:
        self.metrics.active.set(len(self.mesh.locals))
        if self._in_charge:
            self.saved_workloads.write(self._served())

    # --- from the workers ------------------------------------------------------------------------
    def on_start(self, worker: Worker) -> None:
        """A new worker: give it everything."""
        config = self.config
        if self._in_charge:
            self.descriptors.store_worker(worker.pid, worker.channel.fileno())
        worker.send(
            messages.Configure(
                log_level=config.log_level,
                log_format=config.log_format,
                access_log=config.access_log,
                rbac_level="info" if config.authz_policy_info_logging else "debug",
                keylog_path=config.tls_keylog_path,
                cluster_id=config.cluster_id,
                trust_domains=self.mesh.trust_domains.names if config.trust_domain_aliases else (),
            )
        )
        worker.send(self.revocations.message)
        for certificate in self.certificates.held():
            worker.send(certificate)
        self.mesh.introduce(worker)

    def on_message(self, worker: Worker, message: messages.Message) -> None:
        """A question of a worker."""
        match message:
            case messages.Resolve():
                self.mesh.resolve(worker, message)
            case messages.LookupSource():
                self.mesh.lookup_source(worker, message)
            case messages.NeedCertificate(identity=identity):
                answer = self.certificates.answer(identity, settled=not self.pending())
                if answer is not None:
                    worker.send(answer)
            case messages.Ready():
                log.info("worker ready", {"pid": worker.pid})
            case _:
                log.warning("unexpected message of a worker", {"type": type(message).__name__})

    def on_exit(self, worker: Worker) -> None:
        """A worker is gone."""
        self.descriptors.forget_worker(worker.pid)
        self.series.finish(worker.pid)
        self.mesh.forget_worker(worker)
