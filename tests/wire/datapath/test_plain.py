"""Connections without a tunnel: to destinations outside the mesh, and from clients outside it."""

from __future__ import annotations

import hashlib
import os

import pytest

from metalmesh.ztunnel import messages as m
from tests.support import tcp_apps as apps
from tests.support.data_worker import Pair, dial_uncaptured
from tests.support.waits import WAITS

PORT = 8081


def test_unknown_destination_passes_through(shared_pair: Pair) -> None:
    """Captured, logged, and sent on as plain TCP from the workload's own address."""
    address = shared_pair.server.addresses[0]
    with apps.tcp_app(shared_pair.server.where, PORT, apps.echo) as callers:
        assert apps.echo_through(shared_pair.client.where, address, PORT, 3_000_000)
    assert callers == [shared_pair.client.addresses[0]]
    line = shared_pair.source.log_line("connection complete", f"dst.addr={address}:{PORT}")
    assert 'direction="outbound" bytes_sent=3000000 bytes_recv=3000000' in line
    assert "identity" not in line
    inbound = shared_pair.destination.log_line("connection complete", f"dst.addr={address}:{PORT}")
    assert 'direction="inbound" bytes_sent=3000000 bytes_recv=3000000' in inbound


def test_tcp_route_goes_where_it_says(shared_pair: Pair) -> None:
    """A service address is replaced by an endpoint's."""
    server = shared_pair.server
    service = m.ServiceRef("a.test.svc.cluster.local", "a", "test")
    endpoint = m.Endpoint(address=f"{server.addresses[0]}:{PORT}")
    route = m.Route(kind="tcp", endpoints=(endpoint,), service=service)
    shared_pair.source.routes["192.0.2.7", 80] = route
    shared_pair.client.where.run("ip", "route", "replace", "192.0.2.7/32", "dev", "eth0")
    with apps.tcp_app(server.where, PORT, apps.echo):
        assert apps.echo_through(shared_pair.client.where, "192.0.2.7", 80, 1000)
    shared_pair.source.log_line('dst.service="a.test.svc.cluster.local"')


def test_error_route_refuses_and_says_why(shared_pair: Pair) -> None:
    """Nothing healthy: never a guess."""
    route = m.Route(kind="error", error="no healthy upstream: 192.0.2.8:80")
    shared_pair.source.routes["192.0.2.8", 80] = route
    shared_pair.client.where.run("ip", "route", "replace", "192.0.2.8/32", "dev", "eth0")
    with pytest.raises(ConnectionResetError):
        shared_pair.client.where.connect("192.0.2.8", 80).recv(1)
    shared_pair.source.log_line("connection failed", 'error="no healthy upstream: 192.0.2.8:80"')


def test_refused_plain_connection_is_reset(shared_pair: Pair) -> None:
    """Nobody listens, behind two proxies that accepted first."""
    address = shared_pair.server.addresses[0]
    with pytest.raises(ConnectionResetError):
        shared_pair.client.where.connect(address, PORT + 1).recv(1)
    shared_pair.destination.log_line("Connection refused", f"dst.addr={address}:{PORT + 1}")


def test_plaintext_reaches_the_application_unchanged(shared_pair: Pair) -> None:
    """30 MB up, the digest down, with the client's own address."""
    data = os.urandom(30_000_000)
    address = shared_pair.server.addresses[0]
    with (
        apps.tcp_app(shared_pair.server.where, PORT, apps.hash_upload) as callers,
        dial_uncaptured(shared_pair.client.where, address, PORT) as sock,
    ):
        sock.settimeout(60)
        sender = apps.send_in_background(sock, data)
        assert apps.read_all(sock).decode() == hashlib.sha256(data).hexdigest()
        sender.join()
    assert callers == [shared_pair.client.addresses[0]]


def test_plain_resets_go_both_ways(shared_pair: Pair) -> None:
    """A reset is a reset without a tunnel, too."""
    address = shared_pair.server.addresses[0]
    with (
        apps.tcp_app(shared_pair.server.where, PORT, apps.reset_after_request),
        dial_uncaptured(shared_pair.client.where, address, PORT) as sock,
    ):
        sock.sendall(b"x" * 10)
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
    observer = apps.Observer()
    with apps.tcp_app(shared_pair.server.where, PORT, observer):
        sock = dial_uncaptured(shared_pair.client.where, address, PORT)
        sock.sendall(b"hello")
        assert observer.started.wait(WAITS["traffic"].seconds)
        apps.reset(sock)
        assert observer.done.wait(WAITS["traffic"].seconds)
    assert observer.end == "reset"


def test_early_answer_survives_a_plain_reset(shared_pair: Pair) -> None:
    """As through the tunnel."""
    address = shared_pair.server.addresses[0]
    with (
        apps.tcp_app(shared_pair.server.where, PORT, apps.answer_then_reset),
        dial_uncaptured(shared_pair.client.where, address, PORT) as sock,
    ):
        sock.sendall(b"x")
        assert sock.recv(100) == b"early answer"
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_slow_plain_reader_holds_its_sender_back(shared_pair: Pair) -> None:
    """Bounded buffers: the worker does not swallow what nobody reads."""
    stalled = apps.Stalled()
    address = shared_pair.server.addresses[0]
    with (
        apps.tcp_app(shared_pair.server.where, PORT, stalled),
        apps.tcp_app(shared_pair.server.where, PORT + 1, apps.echo),
        dial_uncaptured(shared_pair.client.where, address, PORT) as sock,
    ):
        sock.settimeout(60)
        sender = apps.send_in_background(sock, bytes(60_000_000))
        assert apps.echo_through(shared_pair.client.where, address, PORT + 1, 1_000_000)
        assert sender.is_alive()
        stalled.go.set()
        assert apps.read_all(sock) == b"60000000"
        sender.join()


def test_plaintext_for_a_foreign_address_is_refused(shared_pair: Pair) -> None:
    """A workload's proxy forwards to the workload and nowhere else."""
    server = shared_pair.server
    server.where.run("ip", "address", "add", "192.0.2.99/32", "dev", "eth0")
    client = shared_pair.client.where
    client.run("ip", "route", "replace", "192.0.2.99/32", "dev", "eth0")
    with pytest.raises(ConnectionResetError):
        dial_uncaptured(client, "192.0.2.99", PORT).recv(1)
    shared_pair.destination.log_line("ip mismatch: 192.0.2.99 != 198.18.0.2")
