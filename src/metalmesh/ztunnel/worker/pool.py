"""HBONE connections of a workload to its peers, shared by its streams (istio-facts 2.6).

One pool per workload. The key is who we are, whom we accept, our address and the peer's: only
connections that prove the same thing share a tunnel. One connection is opened at a time per
key; callers wait for it. A further one is opened when all are full, or, up to a few, when all are
blocked: one TCP connection is one core at either end, and what is queued in it comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from metalmesh.constants import (
    CONNECT_TIMEOUT_SECONDS,
    POOL_IDLE_RELEASE_SECONDS,
    POOL_MAX_BLOCKED,
    POOL_MAX_STREAMS,
    PORT_HBONE,
)
from metalmesh.errors import NetworkError
from metalmesh.hbone.frames import Limits
from metalmesh.net.sockets import finish_connect, start_connect, upstream_socket
from metalmesh.ztunnel.worker.certificates import peer_identities
from metalmesh.ztunnel.worker.flow import (
    CERT_REVOKED,
    CONNECT,
    H2_HANDSHAKE_FAILURE,
    IDENTITY_ERROR,
    NETWORK_POLICY,
    TLS_FAILURE,
)
from metalmesh.ztunnel.worker.loop import WRITE
from metalmesh.ztunnel.worker.tls import Loss, TlsConnection, TlsFailedError

if TYPE_CHECKING:
    import socket
    from typing import Protocol

    from metalmesh.ztunnel.worker.certificates import Credentials
    from metalmesh.ztunnel.worker.context import Context
    from metalmesh.ztunnel.worker.loop import Timer
    from metalmesh.ztunnel.worker.workloads import Workload

    class Customer(Protocol):
        """A connection of an application that needs a stream."""

        @property
        def over(self) -> bool:
            """It needs none any more."""

        def tunnel_ready(self, connection: PoolConnection) -> None:
            """Open the stream on this connection, now."""

        def tunnel_failed(self, error: str, flags: str) -> None:
            """There will be none."""


CLIENT_LIMITS: Final = Limits(max_streams=POOL_MAX_STREAMS, max_header_bytes=16 * 1024)
_RELEASE_SWEEP_SECONDS: Final = 30.0


class PoolKey(NamedTuple):
    """What connections must have in common to be shared."""

    identity: str
    peers: tuple[str, ...]
    source: str
    address: str


class Shelf:
    """The connections of one key and who waits for one."""

    __slots__ = ("connecting", "peer_streams", "ready", "waiting")

    def __init__(self) -> None:
        #: streams the peer granted last; a new connection starts with it, as the peer's
        #: SETTINGS come only after our first requests
        self.peer_streams = POOL_MAX_STREAMS
        self.ready: list[PoolConnection] = []
        self.connecting: PoolConnection | None = None
        self.waiting: list[Customer] = []

    def choose(self, *, another: bool = True) -> PoolConnection | None:
        """A connection for one more stream; None when ``another`` one had better be opened."""
        blocked = None
        for connection in self.ready:
            if connection.has_room:
                if not connection.stalled:
                    return connection
                blocked = blocked or connection
        return None if another and len(self.ready) < POOL_MAX_BLOCKED else blocked


class Pool:
    """The pool of one workload."""

    def __init__(self, context: Context, workload: Workload) -> None:
        self.context = context
        self._workload = workload
        self._shelves: dict[PoolKey, Shelf] = {}
        self._closed = False
        self._sweep: Timer | None = None

    def request(self, key: PoolKey, customer: Customer) -> None:
        """Call ``tunnel_ready`` with a connection that has room, or ``tunnel_failed``."""
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf()
        connection = shelf.choose()
        if connection is not None:
            customer.tunnel_ready(connection)
            return
        shelf.waiting.append(customer)
        if shelf.connecting is None:
            self._connect(key, shelf)

    def withdraw(self, customer: Customer) -> None:
        """It waits no more."""
        for shelf in self._shelves.values():
            if customer in shelf.waiting:
                shelf.waiting.remove(customer)

    def _connect(self, key: PoolKey, shelf: Shelf) -> None:
        credentials = self.context.certificates.get(key.identity)
        if credentials is None:
            self.context.certificates.wait(
                key.identity, lambda found, error: self._certified(key, shelf, found, error)
            )
            return
        host, _, port = key.address.rpartition(":")
        try:
            self.context.netns.enter(self._workload.netns_fd)
            sock = upstream_socket(host.strip("[]"))
        except (OSError, NetworkError) as error:
            self._fail_waiting(shelf, f"connection failed: {error}", CONNECT)
            return
        connection = PoolConnection(self, key, sock, self.context, credentials)
        connection.peer_max_streams = shelf.peer_streams
        shelf.connecting = connection
        connection.connect(host.strip("[]"), int(port))

    def _certified(self, key: PoolKey, shelf: Shelf, found: Credentials | None, error: str) -> None:
        if self._closed or shelf.connecting is not None or not shelf.waiting:
            return
        if found is None:
            self._fail_waiting(shelf, f"certificate unavailable: {error}", TLS_FAILURE)
        else:
            self._connect(key, shelf)

    @staticmethod
    def _fail_waiting(shelf: Shelf, error: str, flags: str) -> None:
        waiting, shelf.waiting = shelf.waiting, []
        for customer in waiting:
            if not customer.over:
                customer.tunnel_failed(error, flags)

    # --- told by connections
    def connected(self, connection: PoolConnection) -> None:
        """A connection is secured: serve those who wait, as far as it has room."""
        shelf = self._shelves[connection.key]
        shelf.connecting = None
        shelf.ready.append(connection)
        if self._sweep is None:
            self._sweep = self.context.loop.call_later(_RELEASE_SWEEP_SECONDS, self._release)
        waiting, shelf.waiting = shelf.waiting, []
        for index, customer in enumerate(waiting):
            if not connection.has_room:
                shelf.waiting = waiting[index:] + shelf.waiting
                break
            if not customer.over:
                customer.tunnel_ready(connection)
        if shelf.waiting and shelf.connecting is None:
            self._connect(connection.key, shelf)

    def granted(self, connection: PoolConnection) -> None:
        """The peer has said how many streams it allows."""
        shelf = self._shelves.get(connection.key)
        if shelf is not None:
            shelf.peer_streams = connection.peer_max_streams

    def lost(self, connection: PoolConnection, error: str, flags: str) -> None:
        """A connection is gone; who waited for it is told."""
        shelf = self._shelves[connection.key]
        if connection in shelf.ready:
            shelf.ready.remove(connection)
        if shelf.connecting is connection:
            shelf.connecting = None
            while shelf.waiting and (other := shelf.choose(another=False)) is not None:
                customer = shelf.waiting.pop(0)
                if not customer.over:
                    customer.tunnel_ready(other)
            self._fail_waiting(shelf, error, flags)
        if not (shelf.ready or shelf.waiting or shelf.connecting):
            del self._shelves[connection.key]

    # --- ends
    def _release(self) -> None:
        """Close what nobody has used for a while."""
        self._sweep = None
        limit = self.context.loop.now - POOL_IDLE_RELEASE_SECONDS
        for shelf in list(self._shelves.values()):
            for connection in list(shelf.ready):
                if not connection.streams and connection.idle_since <= limit:
                    connection.finish()
        if self._shelves and not self._closed:
            self._sweep = self.context.loop.call_later(_RELEASE_SWEEP_SECONDS, self._release)

    def drain(self) -> None:
        """Close idle connections; the others when their last stream has ended."""
        for shelf in list(self._shelves.values()):
            for connection in list(shelf.ready):
                connection.retire()

    def end_revoked(self) -> None:
        """Close connections to servers whose certificate has been revoked."""
        for shelf in list(self._shelves.values()):
            for connection in list(shelf.ready):
                if self.context.revoked.found(connection.tls, "source"):
                    connection.revoke()

    def close(self) -> None:
        """Close everything at once."""
        self._closed = True
        for shelf in list(self._shelves.values()):
            for connection in [*shelf.ready, *([shelf.connecting] if shelf.connecting else [])]:
                connection.dismiss("workload removed")
            self._fail_waiting(shelf, "workload removed", CONNECT)


class PoolConnection(TlsConnection):
    """The client's end of an HBONE connection."""

    __slots__ = (
        "_address",
        "_connecting",
        "_credentials",
        "_deadline",
        "_pool",
        "_retiring",
        "idle_since",
        "key",
        "netns",
    )

    def __init__(
        self,
        pool: Pool,
        key: PoolKey,
        sock: socket.SocketType,
        context: Context,
        credentials: Credentials,
    ) -> None:
        super().__init__(context.loop, sock, CLIENT_LIMITS, client=True)
        self.key = key
        self.idle_since = context.loop.now
        self._pool = pool
        self._credentials = credentials
        self._connecting = True
        self._retiring = False
        self._deadline = context.loop.call_later(CONNECT_TIMEOUT_SECONDS, self._late)

    def connect(self, host: str, port: int) -> None:
        """Begin; the handshake follows by itself."""
        try:
            if start_connect(self._sock, host, port):
                self._established()
            else:
                self._watch(WRITE)
        except OSError as error:
            self.lose(f"connection failed: {error}")

    def on_event(self, events: int) -> None:
        """The socket is ready; at first that means connected or refused."""
        if self.closed or not self._connecting:
            super().on_event(events)
            return
        try:
            finish_connect(self._sock)
        except OSError as error:
            self.lose(f"connection failed: {error}")
            return
        self._established()

    def _established(self) -> None:
        self._connecting = False
        self.secure(self._credentials.client)

    def _late(self) -> None:
        if not self.handshaking:
            return
        if self._connecting and self.key.address.endswith(f":{PORT_HBONE}"):
            self.lose(
                "connection timed out, maybe a NetworkPolicy is blocking HBONE port "
                f"{PORT_HBONE}: no answer from {self.key.address} within "
                f"{CONNECT_TIMEOUT_SECONDS:.0f} s"
            )
        else:
            self.lose(f"connection timed out: {self.key.address} finishes no TLS handshake")

    def on_secured(self) -> None:
        """The server must be one of those the route allows."""
        presented = [str(identity) for identity in peer_identities(self.tls)]
        if not set(presented) & set(self.key.peers):
            raise TlsFailedError(
                "identity verification error: peer did not present the expected SAN "
                f"({', '.join(self.key.peers)}), got {', '.join(presented) or 'none'}",
                Loss.IDENTITY,
            )
        self._pool.context.revoked.check(self.tls, "source")
        self._deadline.cancel()
        self._pool.connected(self)

    def on_settings(self) -> None:
        """The peer's limits are known."""
        self._pool.granted(self)

    def on_idle(self) -> None:
        """The last stream has ended."""
        self.idle_since = self._loop.now
        if self._retiring or self.peer_goaway:
            self._loop.call_later(0, self.finish)

    def retire(self) -> None:
        """Take no more streams; close when there is none."""
        self._retiring = True
        if not self.streams:
            self.finish()

    def on_goaway(self, _code: int, _debug: bytes) -> None:
        """No more streams here (``has_room`` is false); close when there is none."""
        if not self.streams:
            self._loop.call_later(0, self.finish)

    def on_lost(self, error: str, loss: Loss) -> None:
        """Tell the pool."""
        self._deadline.cancel()
        if loss is Loss.IDENTITY:
            flags = IDENTITY_ERROR
        elif loss is Loss.REVOKED:
            flags = CERT_REVOKED
        elif self._connecting:
            flags = NETWORK_POLICY if "NetworkPolicy" in error else CONNECT
        else:
            flags = TLS_FAILURE if self.handshaking else H2_HANDSHAKE_FAILURE
        self._pool.lost(self, error or "connection closed", flags)
