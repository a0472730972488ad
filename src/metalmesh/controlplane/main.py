"""The control plane: puts its parts together and runs them."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from metalmesh.constants import TYPE_ADDRESS, TYPE_AUTHORITY
from metalmesh.controlplane.announcement import AnnouncedSnapshot
from metalmesh.controlplane.debug import debug_server
from metalmesh.controlplane.discovery_service import DiscoveryService
from metalmesh.controlplane.identity_service import (
    CertificateService,
    NodeAuthenticator,
    NodeService,
    handlers,
)
from metalmesh.controlplane.issued import IssuedCertificates
from metalmesh.controlplane.issuer import Issuer, server_credentials
from metalmesh.controlplane.join_tokens import JoinTokens
from metalmesh.controlplane.metrics import ControlPlaneMetrics
from metalmesh.controlplane.resources import ResourceKeeper
from metalmesh.controlplane.revocations import Revocations
from metalmesh.controlplane.state import StateDirectory
from metalmesh.controlplane.store import DirectoryStore
from metalmesh.errors import ConfigError, MetalmeshError
from metalmesh.service.logs import Log
from metalmesh.service.metrics import Registry
from metalmesh.service.systemd import Notifier
from metalmesh.xds.node import AUTHORITY_NAME

if TYPE_CHECKING:
    from metalmesh.controlplane.config import ControlPlaneConfig

#: clients read at most this much at once (istio-facts 3.1)
MAX_SEND_BYTES: Final = 200 * 1024 * 1024
#: what a client may send: the versions of all it holds; anybody can connect, so not more
MAX_RECEIVE_BYTES: Final = 16 * 1024 * 1024
#: a stream is closed and authenticated anew after half an hour, as by istiod
MAX_CONNECTION_AGE_MS: Final = 30 * 60 * 1000
_OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.max_send_message_length", MAX_SEND_BYTES),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_MS),
    ("grpc.max_connection_age_grace_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # clients ping every 30 s, also without a call
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
    # a peer that connects and then says nothing is dropped
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", 1024),
]
#: how often the CA's files, the serving certificate and the status line are looked after
MAINTENANCE_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 3600.0
#: how long a node may have to wait until all clients have confirmed a change of health
SETTLE_SECONDS: Final = 5.0
#: unary calls take milliseconds; streams only end by being cut
STOP_GRACE_SECONDS: Final = 0.2

log = Log("metalmesh.controlplane")


class ControlPlane:
    """All parts of the control plane."""

    def __init__(self, config: ControlPlaneConfig) -> None:
        self.config = config
        self.registry = Registry()
        self._metrics = ControlPlaneMetrics(self.registry)
        self._notifier = Notifier()
        state = StateDirectory(config.state_dir)
        self.issuer = Issuer(
            config.ca_dir,
            config.server_names,
            config.svid_ttl_seconds,
            config.svid_max_ttl_seconds,
            self._metrics,
        )
        authenticator = NodeAuthenticator(
            state.token_key(),
            config.node_token_ttl_seconds,
            Revocations(config.tokens_dir),
            self._metrics,
        )
        self.keeper = ResourceKeeper(
            DirectoryStore(config.store_dir),
            state,
            config.compute_options,
            self._metrics,
            lambda changes: self.discovery.publish(changes),
        )
        self.discovery = DiscoveryService(
            authenticator,
            AnnouncedSnapshot(lambda: self.keeper.snapshot, lambda: self.issuer.authority),
            self._metrics,
        )
        self._tokens = JoinTokens(config.tokens_dir)
        self._issued = IssuedCertificates(config.state_dir)
        self._identity_handlers = self._make_identity_handlers(authenticator)
        self._ready = False
        self.port = 0
        self.metrics_port = 0
        self.stop_requested = asyncio.Event()
        self.started = asyncio.Event()

    def _make_identity_handlers(
        self, authenticator: NodeAuthenticator
    ) -> list[grpc.GenericRpcHandler[Any, Any]]:
        certificates = CertificateService(
            self.issuer,
            authenticator,
            self.config.trust_domain,
            lambda: self.keeper.computation.identities,
            self._issued,
            self._metrics,
        )
        nodes = NodeService(
            self._tokens,
            authenticator,
            self._metrics,
            self.keeper.set_health,
            lambda: self.discovery.settle(TYPE_ADDRESS, SETTLE_SECONDS),
        )
        return handlers(certificates, nodes)

    async def run(self) -> None:
        """Serve until a signal asks to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop_requested.set)
        self.keeper.restore()
        self.keeper.refresh()
        server = await self._listen()
        debug = debug_server(
            self.registry, self.config, self.keeper.status, self.discovery.syncz,
            lambda: self._ready,
        )  # fmt: skip
        self.metrics_port = await debug.listen(self._addresses(), self.config.metrics_port)
        self._ready = True
        self._notifier.ready(self._status())
        self.started.set()
        log.info("serving", {"port": self.port, "metrics_port": self.metrics_port})
        try:
            await self._until_stopped()
        finally:
            self._notifier.stopping()
            self.discovery.end_all()
            await server.stop(STOP_GRACE_SECONDS)
            await debug.close()
            self.keeper.save()

    async def _listen(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self.discovery.handler(), *self._identity_handlers))
        address = self.config.listen_address
        where = f"[{address}]" if ":" in address else address
        credentials = server_credentials(lambda: self.issuer.serving)
        try:
            self.port = server.add_secure_port(f"{where}:{self.config.port}", credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"port {self.config.port} on {address} cannot be listened on ({error}); is another "
                "control plane running?"
            ) from error
        await server.start()
        return server

    def _addresses(self) -> list[str]:
        """asyncio listens on one family per address."""
        address = self.config.listen_address
        return ["0.0.0.0", "::"] if address == "::" else [address]

    async def _until_stopped(self) -> None:
        """Run until asked to stop; a part that fails ends the service, and systemd restarts it."""
        stop = asyncio.ensure_future(self.stop_requested.wait())
        tasks = {
            stop,
            asyncio.ensure_future(self.keeper.run()),
            asyncio.ensure_future(self.keeper.keep_saved()),
            asyncio.ensure_future(self._maintain()),
            asyncio.ensure_future(self._sweep()),
        }
        watchdog = self._notifier.watchdog_interval_seconds()
        if watchdog is not None:
            tasks.add(asyncio.ensure_future(self._feed_watchdog(watchdog)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _maintain(self) -> None:
        """Renew certificates, end streams of void tokens, keep the status line current."""
        while True:
            await asyncio.sleep(MAINTENANCE_SECONDS)
            if self.issuer.maintain():
                self.discovery.publish({TYPE_AUTHORITY: frozenset({AUTHORITY_NAME})})
            self.discovery.end_unauthorized()
            self._notifier.status(self._status())

    async def _sweep(self) -> None:
        """Forget join tokens that are long used or expired, and expired certificates."""
        while True:
            try:
                self._tokens.sweep(int(time.time()))
                self._issued.sweep(int(time.time()))
            except (MetalmeshError, OSError) as error:
                log.error("old tokens or certificates not forgotten", {"error": str(error)})
            await asyncio.sleep(SWEEP_SECONDS)

    async def _feed_watchdog(self, interval_seconds: float) -> None:
        while True:
            self._notifier.watchdog()
            await asyncio.sleep(interval_seconds)

    def _status(self) -> str:
        admission = self.keeper.admission
        return (
            f"{len(admission.objects)} objects, {len(admission.errors)} errors, "
            f"{len(self.discovery.syncz())} clients"
        )
