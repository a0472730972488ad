"""The pool of HBONE connections: sharing, limits, release, and peers that fall silent.

The pool runs in this process, on its own loop, against independent ``h2`` servers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from h2.settings import SettingCodes, Settings

from metalmesh.constants import POOL_MAX_BLOCKED
from metalmesh.hbone.stream import Stream
from metalmesh.net.netns import open_own_netns
from metalmesh.ztunnel import messages as m
from metalmesh.ztunnel.worker.certificates import make_credentials
from metalmesh.ztunnel.worker.context import Context
from metalmesh.ztunnel.worker.logs import LogWriter
from metalmesh.ztunnel.worker.loop import Loop
from metalmesh.ztunnel.worker.pool import Pool, PoolConnection, PoolKey
from metalmesh.ztunnel.worker.workloads import Workload
from tests.support.pki import CertificateAuthority, Credentials
from tests.support.waits import WAITS

OWN = "spiffe://cluster.local/ns/test/sa/client"
PEER = "spiffe://cluster.local/ns/test/sa/server"


class Server:
    """An HBONE server that answers every CONNECT with 200, unless told to be silent."""

    def __init__(self, credentials: Credentials, max_streams: int = 100) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._context = credentials.context(ssl.PROTOCOL_TLS_SERVER)
        self._max_streams = max_streams
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:  # closed by the test
                return
            self.connections += 1
            self._open.append(plain)
            threading.Thread(target=self._talk, args=(plain,), daemon=True).start()

    def _talk(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as tls,
        ):
            connection = H2Connection(H2Configuration(client_side=False))
            limit = {SettingCodes.MAX_CONCURRENT_STREAMS: self._max_streams}
            connection.local_settings = Settings(client=False, initial_values=limit)
            connection.initiate_connection()
            tls.sendall(connection.data_to_send())
            while data := tls.recv(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, RequestReceived):
                        connection.send_headers(event.stream_id, [(":status", "200")])
                tls.sendall(connection.data_to_send())

    def close(self) -> None:
        """Accept no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


class Customer(Stream):
    """Wants a stream; remembers what it got. ``over`` as the pool asks for it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.over = False
        self.world = world
        self.connection: PoolConnection | None = None
        self.end = ""

    def tunnel_ready(self, connection: PoolConnection) -> None:
        self.connection = connection
        connection.open_stream(self, b"\x02\x07CONNECT\x01\x01x")

    def tunnel_failed(self, error: str, flags: str) -> None:
        self.end = f"{flags}: {error}"
        self.world.loop.stop()

    def on_response(self, status: str, headers: object) -> None:
        self.world.answered += 1
        if self.world.answered >= self.world.expected:
            self.world.loop.stop()

    def on_reset(self, code: int) -> None:
        self.end = f"reset {code}"
        self.mux = None

    def deliver(self) -> None:
        self.chunks.clear()

    def resume(self) -> None:
        """Nothing is sent here."""


class World:
    """A pool with everything around it."""

    def __init__(self, ca: CertificateAuthority) -> None:
        self.loop = Loop()
        self.null = os.open(os.devnull, os.O_WRONLY)
        context = Context(self.loop, LogWriter(self.loop, self.null), lambda message: None)
        leaf = ca.leaf(OWN)
        texts = [part.decode() for part in (leaf.chain, leaf.key, leaf.roots)]
        certificate = m.Certificate(
            identity=OWN, chain_pem=texts[0], key_pem=texts[1], roots_pem=texts[2]
        )
        context.certificates.put(make_credentials(certificate, ""))
        add = m.AddWorkload(uid="u", name="n", namespace="test", service_account="client")
        self.netns_fd = open_own_netns()
        self.pool = Pool(context, Workload(add, self.netns_fd, context.log))
        self.answered = self.expected = 0

    def run(self, customers: list[Customer], address: str, expected: int = -1) -> None:
        """Request streams and turn the loop until they are answered."""
        self.answered, self.expected = 0, len(customers) if expected < 0 else expected
        for customer in customers:
            self.pool.request(PoolKey(OWN, (PEER,), "10.0.0.1", address), customer)
        if not all(customer.end or customer.over for customer in customers):
            self.turn()

    def turn(self, seconds: float = WAITS["traffic"].seconds) -> None:
        """Turn until somebody stops the loop."""
        self.loop._stopped = False
        self.loop.now = time.monotonic()  # a test may have moved it
        limit = self.loop.call_later(seconds, self.loop.stop)
        self.loop.run()
        limit.cancel()


@pytest.fixture
def ca() -> CertificateAuthority:
    return CertificateAuthority()


@pytest.fixture
def world(ca: CertificateAuthority) -> Iterator[World]:
    world = World(ca)
    yield world
    world.pool.close()
    world.turn(0.01)
    os.close(world.netns_fd)
    os.close(world.null)


@pytest.fixture
def serve(ca: CertificateAuthority) -> Iterator[object]:
    servers: list[Server] = []

    def start(identity: str = PEER, **options: int) -> Server:
        servers.append(Server(ca.leaf(identity), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_concurrent_requests_share_one_connection(world: World, serve) -> None:
    """One is opened, everybody waits for it."""
    server = serve()
    customers = [Customer(world) for _ in range(50)]
    world.run(customers, server.address)
    assert (world.answered, server.connections) == (50, 1)
    assert len({id(customer.connection) for customer in customers}) == 1


def test_another_is_opened_when_all_are_full(world: World, serve) -> None:
    """100 streams each, whatever more the server would grant."""
    server = serve(max_streams=1000)
    world.run([Customer(world) for _ in range(250)], server.address)
    assert (world.answered, server.connections) == (250, 3)


def test_servers_stream_limit_is_kept(world: World, serve) -> None:
    """Known from its first answer on; what was too much is refused and not lost silently."""
    server = serve(max_streams=2)
    world.run([Customer(world)], server.address)
    world.run([Customer(world) for _ in range(4)], server.address, expected=4)
    assert world.answered == 4
    assert server.connections == 3


def test_idle_connection_is_released_after_five_minutes(world: World, serve) -> None:
    server = serve()
    customer = Customer(world)
    world.run([customer], server.address)
    connection = customer.connection
    assert connection is not None
    world.loop.now += 400
    world.pool._release()
    assert not connection.closed, "it has a stream"
    connection.reset_stream(customer, 8)
    world.pool._release()
    assert not connection.closed, "it has just become idle"
    world.loop.now += 301
    world.pool._release()
    assert connection.closed
    world.run([Customer(world)], server.address)
    assert server.connections == 2


def test_peer_that_disappears_is_noticed(world: World, serve) -> None:
    """No answer to PING for 20 s: every stream is reset, the next request dials afresh."""
    server = serve()
    customer = Customer(world)
    world.run([customer], server.address)
    connection = customer.connection
    assert connection is not None
    world.loop.now += 10
    connection._check_alive()
    world.loop.now += 10
    connection._check_alive()
    assert not connection.closed
    world.loop.now += 10
    connection._check_alive()
    assert connection.closed
    assert customer.end == "reset 10"


def test_refused_dial_fails_every_waiter(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    customers = [Customer(world) for _ in range(3)]
    world.run(customers, address)
    assert {customer.end for customer in customers} == {
        "CONNECT: connection failed: [Errno 111] Connection refused"
    }


def test_wrong_identity_fails_every_waiter(world: World, serve) -> None:
    server = serve("spiffe://cluster.local/ns/test/sa/other")
    customers = [Customer(world) for _ in range(3)]
    world.run(customers, server.address)
    assert all(customer.end.startswith("IDENTITY_ERROR: identity") for customer in customers)


def test_who_has_left_gets_no_stream(world: World, serve) -> None:
    """The application hung up while the connection was being made."""
    server = serve()
    gone, here = Customer(world), Customer(world)
    gone.over = True
    world.run([gone, here], server.address, expected=1)
    assert gone.connection is None
    assert here.connection is not None


def block(customer: Customer) -> PoolConnection:
    """As a tunnel does that has data and finds the connection's window closed."""
    connection = customer.connection
    assert connection is not None
    connection.send_window = 0
    connection.block(customer)
    return connection


def test_blocked_connection_gets_a_neighbour_until_it_flows_again(world: World, serve) -> None:
    """What is queued there would come first, and one connection is one core at either end."""
    server = serve()
    first, second, third = (Customer(world) for _ in range(3))
    world.run([first], server.address)
    blocked = block(first)
    world.run([second], server.address)
    assert server.connections == 2
    assert second.connection is not blocked
    blocked.resume_stalled()
    world.run([third], server.address)
    assert server.connections == 2
    assert third.connection is blocked


def test_blocked_connections_are_shared_when_there_are_enough(world: World, serve) -> None:
    server = serve()
    customers = [Customer(world) for _ in range(POOL_MAX_BLOCKED + 2)]
    for customer in customers:
        world.run([customer], server.address)
        block(customer)
    assert server.connections == POOL_MAX_BLOCKED
    assert all(customer.connection is not None for customer in customers)


def test_blocked_connection_is_shared_when_no_other_can_be_made(world: World, ca) -> None:
    """The peer takes no more connections; the one there is may flow again."""
    server = Server(ca.leaf(PEER))
    first, second = Customer(world), Customer(world)
    world.run([first], server.address)
    blocked = block(first)
    server.close()
    world.run([second], server.address)
    assert second.connection is blocked
    assert second.end == ""
