"""What an application sends through a pair of data workers arrives, whole and as it was sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived

from metalmesh.constants import PORT_HBONE
from metalmesh.ztunnel import messages as m
from tests.support import tcp_apps as apps
from tests.support.data_worker import Pair
from tests.support.peers import HboneServer
from tests.support.waits import WAITS, wait_until
from tests.wire.datapath.conftest import APP_PORT

MEGABYTE = 1_000_000


@pytest.fixture
def server(shared_pair: Pair) -> str:
    """The server's address."""
    return shared_pair.server.addresses[0]


def test_upload_of_30_megabytes_is_unchanged(shared_pair: Pair, server: str) -> None:
    """Every byte towards the server, and the answer after the client's FIN."""
    data = os.urandom(30 * MEGABYTE)
    with (
        apps.tcp_app(shared_pair.server.where, APP_PORT, apps.hash_upload),
        shared_pair.client.where.connect(server, APP_PORT) as sock,
    ):
        sock.settimeout(60)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert apps.read_all(sock).decode() == hashlib.sha256(data).hexdigest()


def test_download_of_30_megabytes_is_unchanged(shared_pair: Pair, server: str) -> None:
    """Every byte towards the client."""
    data = os.urandom(30 * MEGABYTE)
    with (
        apps.tcp_app(shared_pair.server.where, APP_PORT, lambda peer: peer.sendall(data)),
        shared_pair.client.where.connect(server, APP_PORT) as sock,
    ):
        sock.settimeout(60)
        assert hashlib.sha256(apps.read_all(sock)).digest() == hashlib.sha256(data).digest()


def test_echo_goes_both_ways_at_once_and_ends_by_half_close(shared_pair: Pair, server: str) -> None:
    """FIN of the client ends its direction only."""
    with apps.tcp_app(shared_pair.server.where, APP_PORT, apps.echo):
        assert apps.echo_through(shared_pair.client.where, server, APP_PORT, 8 * MEGABYTE)


def test_twelve_parallel_echoes_do_not_block_each_other(shared_pair: Pair, server: str) -> None:
    """Streams of one tunnel share its window and must not dead-lock on it."""
    with (
        apps.tcp_app(shared_pair.server.where, APP_PORT, apps.echo),
        ThreadPoolExecutor(12) as pool,
    ):
        results = pool.map(
            lambda _: apps.echo_through(shared_pair.client.where, server, APP_PORT, 3 * MEGABYTE),
            range(12),
        )
        assert list(results) == [True] * 12


def test_reset_of_the_server_reaches_the_client(shared_pair: Pair, server: str) -> None:
    """An abnormal end must not look like a complete answer."""
    with (
        apps.tcp_app(shared_pair.server.where, APP_PORT, apps.reset_after_request),
        shared_pair.client.where.connect(server, APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"x" * 10)
        with pytest.raises(ConnectionResetError):
            sock.recv(10)


def test_reset_of_the_client_reaches_the_server(shared_pair: Pair, server: str) -> None:
    """The same in the other direction."""
    observer = apps.Observer()
    with apps.tcp_app(shared_pair.server.where, APP_PORT, observer):
        sock = shared_pair.client.where.connect(server, APP_PORT)
        sock.sendall(b"hello")
        assert observer.started.wait(WAITS["traffic"].seconds)
        apps.reset(sock)
        assert observer.done.wait(WAITS["traffic"].seconds)
    assert observer.end == "reset"


def test_answer_before_a_reset_is_not_lost(shared_pair: Pair, server: str) -> None:
    """A server that answers early and closes resets the upload; its answer still arrives."""
    with (
        apps.tcp_app(shared_pair.server.where, APP_PORT, apps.answer_then_reset),
        shared_pair.client.where.connect(server, APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"x")
        assert sock.recv(100) == b"early answer"
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_closed_port_refuses_the_client(shared_pair: Pair, server: str) -> None:
    """No application: 503, and the client sees a reset, not an empty answer."""
    # the reset may even be faster than the return of `connect`
    with (
        pytest.raises(ConnectionResetError),
        shared_pair.client.where.connect(server, APP_PORT) as sock,
    ):
        sock.recv(1)
    line = shared_pair.source.log_line("http status: 503 Service Unavailable")
    assert 'direction="outbound"' in line
    assert "onnection refused" in shared_pair.destination.log_line("onnection refused", "inbound")


def test_slow_reader_stalls_nobody_else(shared_pair: Pair, server: str) -> None:
    """60 MB to an application that does not read, while others go on over the same tunnel."""
    stalled = apps.Stalled()
    size = 60 * MEGABYTE
    shared_pair.route(APP_PORT + 1)
    with (
        apps.tcp_app(shared_pair.server.where, APP_PORT, stalled),
        apps.tcp_app(shared_pair.server.where, APP_PORT + 1, apps.echo),
        shared_pair.client.where.connect(server, APP_PORT) as sock,
    ):
        sock.settimeout(60)
        sender = apps.send_in_background(sock, bytes(size))
        for _ in range(3):
            assert apps.echo_through(shared_pair.client.where, server, APP_PORT + 1, MEGABYTE)
        assert sender.is_alive(), "the proxies swallowed everything: nothing holds the sender back"
        stalled.go.set()
        assert apps.read_all(sock) == str(size).encode()
        sender.join()


def test_application_sees_the_clients_own_address(shared_pair: Pair, server: str) -> None:
    """The source address is preserved through the tunnel."""
    with apps.tcp_app(shared_pair.server.where, APP_PORT, apps.echo) as callers:
        assert apps.echo_through(shared_pair.client.where, server, APP_PORT, 1)
    assert callers == [shared_pair.client.addresses[0]]


def test_connections_of_a_workload_share_one_tunnel(shared_pair: Pair, server: str) -> None:
    """A TLS handshake per connection would be 1.5 ms of processor each."""

    def tunnels() -> int:
        table = shared_pair.server.where.run("ss", "-Htn", "state", "established", "sport", "15008")
        return len(table.splitlines())

    with apps.tcp_app(shared_pair.server.where, APP_PORT, apps.echo), ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda _: apps.echo_through(shared_pair.client.where, server, APP_PORT, 1000),
                range(40),
            )
        )
        assert tunnels() == 1


def test_log_and_metrics_tell_of_the_same_connection(shared_pair: Pair, server: str) -> None:
    """Names and labels are Istio's; received bytes are the request's, whoever reports."""
    names = "istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"
    before = shared_pair.source.metrics(), shared_pair.destination.metrics()
    with apps.tcp_app(
        shared_pair.server.where, APP_PORT, lambda peer: (apps.read_all(peer), peer.sendall(b"22"))
    ):
        sock = shared_pair.client.where.connect(server, APP_PORT)
        with sock:
            port = sock.getsockname()[1]
            sock.sendall(b"4444")
            sock.shutdown(socket.SHUT_WR)
            assert apps.read_all(sock) == b"22"
    client = shared_pair.client.addresses[0]
    line = shared_pair.source.log_line(f"src.addr={client}:{port}", "connection complete")
    for part in (
        'src.workload="client"',
        'src.identity="spiffe://cluster.local/ns/test/sa/client"',
        f"dst.addr={server}:15008",
        f"dst.hbone_addr={server}:{APP_PORT}",
        'dst.identity="spiffe://cluster.local/ns/test/sa/server"',
        'direction="outbound" bytes_sent=4 bytes_recv=2 duration="',
    ):
        assert part in line
    assert line.split("\t")[1:3] == ["info", "access"]
    shared_pair.destination.log_line('direction="inbound" bytes_sent=4 bytes_recv=2')
    after = shared_pair.source.metrics(), shared_pair.destination.metrics()
    for reporter, old, new in zip(("source", "destination"), before, after, strict=True):
        grown = [new[name, reporter, "-"] - old.get((name, reporter, "-"), 0) for name in names]
        assert grown == [4, 2]


def test_many_short_connections_leave_nothing_behind(shared_pair: Pair, server: str) -> None:
    """Descriptors and open flows return to what they were."""
    pids = [main.process.pid for main in (shared_pair.source, shared_pair.destination)]

    def descriptors() -> list[int]:
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids]

    with apps.tcp_app(shared_pair.server.where, APP_PORT, apps.echo):
        assert apps.echo_through(shared_pair.client.where, server, APP_PORT, 10)
        before = wait_until(lambda: descriptors(), WAITS["traffic"])
        failures = []

        def run() -> None:
            for _ in range(40):
                if not apps.echo_through(shared_pair.client.where, server, APP_PORT, 100):
                    failures.append(1)

        threads = [threading.Thread(target=run) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    wait_until(lambda: descriptors() <= before, WAITS["traffic"], what="descriptors released")
    for main in (shared_pair.source, shared_pair.destination):
        assert main.metrics()["istio_tcp_sockets_open", "source", ""] == 0
        assert main.metrics()["istio_tcp_sockets_open", "destination", ""] == 0
    assert "internal error" not in shared_pair.source.log() + shared_pair.destination.log()


class Hasty(HboneServer):
    """Answers with a whole window, ends the stream, and resets it in the same breath."""

    answer = os.urandom(200_000)
    code = ErrorCodes.CONNECT_ERROR

    @classmethod
    def _talk(cls, peer: ssl.SSLSocket) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        peer.sendall(connection.data_to_send())
        while data := peer.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    connection.send_headers(event.stream_id, [(":status", "200")])
                elif isinstance(event, DataReceived):
                    frame = connection.max_outbound_frame_size
                    for at in range(0, len(cls.answer), frame):
                        connection.send_data(event.stream_id, cls.answer[at : at + frame])
                    connection.end_stream(event.stream_id)
                    connection.reset_stream(event.stream_id, cls.code)
            peer.sendall(connection.data_to_send())


def test_complete_answer_outlives_the_reset_behind_it(pair: Pair) -> None:
    """Envoy resets what its application has closed; a slow reader still gets all of it."""
    server = pair.server.where
    pair.destination.send(m.RemoveWorkload(uid=pair.server.uid))
    listening = lambda: server.run("ss", "-Hltn", "sport", f"= {PORT_HBONE}")  # noqa: E731
    wait_until(lambda: not listening(), WAITS["traffic"])
    context = pair.ca.leaf(pair.server.identity).context(ssl.PROTOCOL_TLS_SERVER)
    with Hasty(server.listen(PORT_HBONE), context), contextlib.ExitStack() as stack:
        # or the server waits for its client
        stack.callback(pair.source.send, m.Drain(deadline_seconds=0))
        sock = stack.enter_context(pair.client.where.connect(pair.server.addresses[0], APP_PORT))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"all of it, please")
        counters = pair.source.metrics  # an answer of the worker: it has had its turns
        wait_until(lambda: counters() and sock.recv(1, socket.MSG_PEEK), WAITS["traffic"])
        assert apps.read_all(sock) == Hasty.answer
