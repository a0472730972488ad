"""The node agent: puts the parts together and keeps them running.

Everything local (namespaces, redirection, ZDS, policies, services, DNS from the last good state)
works without the control plane; what comes from it replaces that state. Stopping the agent leaves
every rule in force.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

from metalmesh import __version__
from metalmesh.constants import TYPE_ADDRESS, TYPE_NETWORK_POLICY, TYPE_NODE
from metalmesh.errors import ProtocolError, StoreError
from metalmesh.net.watch import NetworkWatch
from metalmesh.node.control import ControlSocket, socket_path
from metalmesh.node.credentials import NodeCredentials
from metalmesh.node.dns_shell import DnsShell
from metalmesh.node.enrolment import Enrolment
from metalmesh.node.health import HealthKeeper
from metalmesh.node.mesh import SUBSCRIPTIONS, NodeMesh
from metalmesh.node.metrics import NodeMetrics
from metalmesh.node.node_network import NodeNetwork
from metalmesh.node.reconciler import Reconciler
from metalmesh.node.server import NodeServer
from metalmesh.node.state import NodeState, PolicyState
from metalmesh.node.zds_shell import ZdsShell
from metalmesh.service.channel import ControlPlane
from metalmesh.service.logs import Log
from metalmesh.service.systemd import Notifier
from metalmesh.service.xds_client import XdsClient, XdsMetrics
from metalmesh.xds.delta_client import DeltaClient, NodeInfo

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from metalmesh.node.config import NodeConfig
    from metalmesh.xds.delta_client import Update

_SAVED_XDS: Final = "xds.pb"
_SAVE_DELAY_SECONDS: Final = 0.5
_STATUS_INTERVAL_SECONDS: Final = 10.0
#: jobs of the node's own namespace
_NODE_JOBS: Final = ("basics", "policies", "services", "probes", "routes")

log = Log("metalmesh.node")


class NodeAgent:
    """One node's agent."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.metrics = NodeMetrics()
        self.state = NodeState(config.run_dir, config.state_dir)
        self.mesh = NodeMesh(config.node_name, config.network)
        self.reconciler = Reconciler(config.reconcile_interval_seconds, self.metrics)
        self.zds = ZdsShell(config.zds_socket, config.ztunnel_group, self.metrics)
        self.enrolment = Enrolment(config, self.state, self.zds, self.reconciler, self.metrics)
        control_plane = ControlPlane(
            address=config.xds_address,
            root_cert_path=str(config.root_cert_path),
            token_path=str(config.token_path),
            cluster_id=config.cluster_id,
            server_name=config.server_name,
        )
        self.xds_state = DeltaClient(_node_info(config), SUBSCRIPTIONS, self._on_update)
        self.xds = XdsClient(
            control_plane,
            self.xds_state,
            XdsMetrics(self.metrics.registry),
            # another control plane may not have heard it
            on_connected=lambda: self.health.changed(),
        )
        self.credentials = NodeCredentials(config, control_plane, self.metrics)
        self.dns = DnsShell(config, self.mesh, self.enrolment, self.metrics)
        self.health = HealthKeeper(
            config.run_dir, self.enrolment, self.credentials.report_health, self.metrics
        )
        self.control = ControlSocket(socket_path(config.run_dir), self.health)
        self.stop_requested = asyncio.Event()
        self._notifier = Notifier()
        self._network = NodeNetwork(config, self.state)
        self._tasks: list[asyncio.Task[None]] = []
        self._save_timer: asyncio.TimerHandle | None = None
        self._started = False

    # --- life ------------------------------------------------------------------------------
    async def run(self) -> None:
        """Serve until asked to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop_requested.set)
        self._prepare()
        self._start(self.reconciler.run())
        await self.reconciler.wait_idle()
        # rules are in force: now ztunnels may come
        self.zds.listen()
        server = NodeServer(self)
        await server.listen()
        watch = self._watch_node()
        self._start(self.zds.serve())
        self._start(self.enrolment.run())
        self._start(self.dns.run())
        await self.control.listen()
        self.health.refresh()
        self._start(self._report_to_systemd())
        if self.config.xds_address:
            self._start(self.credentials.run())
            self._start(self._run_xds())
            self._start(self.health.run())
        self._started = True
        self._notifier.ready(self.status())
        log.info("started", {"node": self.config.node_name})
        await self._wait_for_end()
        self._notifier.stopping()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.control.close()
        self.health.close()
        await server.close()
        watch.close()
        self._save_xds()
        log.info("stopped, every rule stays in force")

    def _prepare(self) -> None:
        """Directories, last good state, first jobs."""
        for directory in (self.config.workloads_dir, self.state.netns_dir, self.config.state_dir):
            directory.mkdir(parents=True, exist_ok=True)
        self.enrolment.on_change = self._on_workloads
        self.reconciler.on_done = self._on_job_done
        self._restore()
        self.reconciler.set_job("basics", self._network.ensure_basics)
        self._plan_policies()
        self._plan_services()
        self._plan_probes()
        self._plan_routes()
        self.enrolment.refresh()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _wait_for_end(self) -> None:
        """Until asked to stop; a part that fails ends the process, and systemd starts it anew."""
        stop = asyncio.ensure_future(self.stop_requested.wait())
        done, _ = await asyncio.wait({stop, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stop}:
            task.result()
        stop.cancel()

    async def _run_xds(self) -> None:
        """Without a node token there is nobody to be; joining comes first."""
        await self.credentials.joined.wait()
        await self.xds.run()

    def _watch_node(self) -> NetworkWatch:
        watch = NetworkWatch()
        loop = asyncio.get_running_loop()

        def on_event() -> None:
            watch.drain()
            for kind in (*_NODE_JOBS, "netns"):
                self.reconciler.look(kind)

        for sock in watch.sockets:
            loop.add_reader(sock, on_event)
        return watch

    async def _report_to_systemd(self) -> None:
        watchdog = self._notifier.watchdog_interval_seconds()
        interval = min(watchdog or _STATUS_INTERVAL_SECONDS, _STATUS_INTERVAL_SECONDS)
        while True:
            if watchdog:
                self._notifier.watchdog()
            self._notifier.status(self.status())
            await asyncio.sleep(interval)

    # --- state -----------------------------------------------------------------------------
    def pending(self) -> list[str]:
        """What readiness still waits for: duties of the node itself, not a single workload's."""
        names = [] if self._started else ["start"]
        return names + sorted(self.reconciler.failing.keys() & set(_NODE_JOBS))

    def status(self) -> str:
        """One line for ``systemctl status``."""
        pending = self.pending()
        state = f"not in force: {', '.join(pending)}" if pending else "ready"
        plane = "connected" if self.xds.connected else "not connected"
        served = len(self.zds.acknowledged)
        return f"{state}; {served} workloads served; control plane {plane}"

    def _restore(self) -> None:
        try:
            data = self.state.load_bytes(_SAVED_XDS)
            if data is not None:
                count = self.xds_state.restore(data)
                log.info("resumed from saved state", {"resources": count})
        except (StoreError, ProtocolError) as error:
            log.warning("no saved state", {"error": str(error)})

    def _on_update(self, update: Update) -> Mapping[str, str]:
        """Take an update of the control plane over, and put it in force."""
        known = self.mesh.known_uids
        self.mesh.apply(update)
        if update.restored:
            return {}
        if update.type_url == TYPE_NETWORK_POLICY or self.mesh.known_uids != known:
            self._plan_policies()
        if update.type_url == TYPE_ADDRESS:
            self.dns.services_changed()
            self._plan_services()
        if update.type_url == TYPE_NODE:
            self._plan_routes()
        if self._save_timer is None:
            # a policy must not be forgotten by a crash; the rest may come again
            delay = 0.0 if update.type_url == TYPE_NETWORK_POLICY else _SAVE_DELAY_SECONDS
            self._save_timer = asyncio.get_running_loop().call_later(delay, self._save_xds)
        return {}

    def _save_xds(self) -> None:
        if self._save_timer is not None:
            self._save_timer.cancel()
            self._save_timer = None
        try:
            self.state.save_bytes(_SAVED_XDS, self.xds_state.save())
        except StoreError as error:
            log.error("state cannot be saved", {"error": str(error)})

    # --- jobs ------------------------------------------------------------------------------
    def _on_workloads(self) -> None:
        self.reconciler.changed("policies")
        if self._started:
            self.health.refresh()
        self._plan_probes()
        self._plan_services()

    def _on_job_done(self, name: str) -> None:
        kind, _, netns = name.partition(":")
        if kind == "netns":
            self.enrolment.serve(netns)
        if name == "policies" and self.mesh.policies is not None:
            self.enrolment.report_unknown(self.mesh.known_uids)

    def _plan_policies(self) -> None:
        policies = self.mesh.policies
        received = None
        if policies is not None:
            received = PolicyState(tuple(policies), self.mesh.known_uids)
            self.metrics.policies.set(len(policies))
        self.reconciler.set_job("policies", lambda: self._network.ensure_policies(received))

    def _plan_services(self) -> None:
        ports = tuple(self.mesh.virtual_ports())
        hairpins = tuple(self.enrolment.uncaptured_addresses())
        self.metrics.services.set(len({item.service for item in ports}))
        self.reconciler.set_job("services", lambda: self._network.ensure_services(ports, hairpins))

    def _plan_probes(self) -> None:
        enrolled = self.enrolment.captured_addresses()
        self.reconciler.set_job("probes", lambda: self._network.ensure_probes(enrolled))

    def _plan_routes(self) -> None:
        if self.mesh.nodes_received:
            routes = self.mesh.node_routes()
            self.reconciler.set_job("routes", lambda: self._network.ensure_node_routes(routes))


def _node_info(config: NodeConfig) -> NodeInfo:
    identifier = f"node~0.0.0.0~{config.node_name}~{config.cluster_domain}"
    metadata = {
        "NODE_NAME": config.node_name,
        "CLUSTER_ID": config.cluster_id,
        "ISTIO_VERSION": __version__,
    }
    return NodeInfo(identifier, metadata)
