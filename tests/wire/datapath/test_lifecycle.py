"""Certificates, routes, draining, and the ends of workers and workloads."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from metalmesh.constants import PORT_HBONE
from metalmesh.ztunnel import messages as m
from tests.support import tcp_apps as apps
from tests.support.data_worker import FakeMain, Pair, captured_pair, hbone_client
from tests.support.netns import Netns
from tests.support.peers import HboneServer
from tests.support.pki import CertificateAuthority
from tests.support.waits import WAITS, wait_until
from tests.wire.datapath.conftest import APP_PORT


def works(pair: Pair) -> bool:
    """Whether a new captured connection is served."""
    try:
        return apps.echo_through(pair.client.where, pair.server.addresses[0], APP_PORT, 100)
    except ConnectionError:
        return False


def _listens(where: Netns) -> bool:
    return bool(where.run("ss", "-Hltn", "sport", str(PORT_HBONE)))


# --- identity of the server
def test_server_with_another_identity_is_refused(pair: Pair) -> None:
    """Only the identities of the route will do, however good the certificate."""
    expected = "spiffe://cluster.local/ns/test/sa/somebody-else"
    pair.route(APP_PORT, identities=(expected,))
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo) as callers:
        assert not works(pair)
    assert callers == []
    pair.source.log_line(
        "identity verification error: peer did not present the expected SAN "
        f"({expected}), got {pair.server.identity}"
    )
    flag = ("istio_tcp_connections_failed_total", "source", "IDENTITY_ERROR")
    assert pair.source.metrics()[flag] == 1


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda ca, uri: CertificateAuthority("foreign").leaf(uri), "self-signed certificate"),
        (lambda ca, uri: ca.leaf("spiffe://other.org/ns/test/sa/server"), "got spiffe://other.org"),
    ],
    ids=["foreign CA", "foreign trust domain"],
)
def test_server_that_proves_nothing_is_refused(pair: Pair, make, complaint: str) -> None:
    """A rogue on the right address and port."""
    pair.destination.send(m.RemoveWorkload(uid=pair.server.uid))
    credentials = make(pair.ca, pair.server.identity)
    server = pair.server.where
    wait_until(lambda: not _listens(server), WAITS["traffic"])
    listener = server.listen(PORT_HBONE)
    with HboneServer(listener, credentials.context(ssl.PROTOCOL_TLS_SERVER)):
        assert not works(pair)
    assert 'direction="outbound"' in pair.source.log_line("error=")
    if complaint.startswith("got"):
        pair.source.log_line(complaint)


def test_independent_server_is_accepted(pair: Pair) -> None:
    """The positive twin: an h2 server with the right certificate, its echo comes back."""
    pair.destination.send(m.RemoveWorkload(uid=pair.server.uid))
    server = pair.server.where
    wait_until(lambda: not _listens(server), WAITS["traffic"])
    context = pair.ca.leaf(pair.server.identity).context(ssl.PROTOCOL_TLS_SERVER)
    with HboneServer(server.listen(PORT_HBONE), context):
        assert works(pair)
        pair.source.send(m.Drain(deadline_seconds=0))  # or the server waits for its client
        pair.source.wait_for(m.Drained)


# --- certificates
def test_connections_wait_for_certificates_on_both_sides() -> None:
    """Both workers ask; nothing fails meanwhile."""
    with captured_pair(log_level="debug") as pair:
        pair.route(APP_PORT)
        for main in (pair.source, pair.destination):
            main.silent.add(m.NeedCertificate)
        with (
            apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
            pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
        ):
            sock.settimeout(WAITS["traffic"].seconds)
            sock.sendall(b"x")
            for member, main in ((pair.client, pair.source), (pair.server, pair.destination)):
                assert main.wait_for(m.NeedCertificate).identity == member.identity
                main.give_certificate(member.identity, main.certificates[member.identity])
            assert sock.recv(1) == b"x"


def test_unavailable_certificate_fails_the_connection(pair: Pair) -> None:
    """The reason reaches the log; nothing goes out in plaintext instead."""
    pair.source.silent.add(m.NeedCertificate)
    with pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock:
        identity = pair.source.wait_for(m.NeedCertificate).identity
        pair.source.send(m.CertificateUnavailable(identity=identity, error="the CA is away"))
        sock.settimeout(WAITS["traffic"].seconds)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    pair.source.log_line('error="certificate unavailable: the CA is away"')


def test_renewed_certificate_is_for_new_connections(pair: Pair) -> None:
    """An open connection keeps its own; a new one shows the new one."""
    own = pair.server.identity
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo), hbone_client(pair) as old:
        first = old.socket.getpeercert(binary_form=True)
        pair.destination.give_certificate(own, pair.ca.leaf(own))
        wait_until(lambda: _leaf(pair) != first, WAITS["traffic"])
        stream, status = old.connect(f"{pair.server.addresses[0]}:{APP_PORT}")
        assert (status, old.exchange(stream, b"still")) == ("200", b"still")


def _leaf(pair: Pair) -> bytes | None:
    with hbone_client(pair) as client:
        return client.socket.getpeercert(binary_form=True)


# --- routes
def test_routes_are_asked_once_and_again_after_invalidation(pair: Pair) -> None:
    """Main decides; the worker remembers until it is told to forget."""

    def asked() -> int:
        return sum(type(item) is m.Resolve for item in pair.source.received)

    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
        assert works(pair)
        assert works(pair)
        assert asked() == 1
        pair.source.send(m.InvalidateRoutes())
        assert works(pair)
        assert asked() == 2


def test_connection_without_an_answer_of_main_is_closed(pair: Pair) -> None:
    """5 s, then the connection ends with the reason."""
    pair.source.silent.add(m.Resolve)
    with pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock:
        sock.settimeout(WAITS["refused"].seconds)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    pair.source.log_line("failed to fetch information about local workload: client.test (client)")


def test_blocked_hbone_port_names_the_likely_cause(pair: Pair) -> None:
    """A NetworkPolicy that admits the application's port only drops 15008: 10 s, then the hint."""
    chain = "add chain inet mm-block in { type filter hook input priority 0; }"
    pair.server.where.run("nft", "add table inet mm-block; " + chain)
    pair.server.where.run("nft", "add rule inet mm-block in tcp dport 15008 drop")
    with pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock:
        sock.settimeout(WAITS["refused"].seconds)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    text = "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: "
    pair.source.log_line(f'error="{text}')
    flag = ("istio_tcp_connections_failed_total", "source", "NETWORK_POLICY")
    assert pair.source.metrics()[flag] == 1


# --- ends
def test_drain_lets_open_connections_finish(pair: Pair) -> None:
    """GOAWAY and no new connections; the open one goes on until its end, then the worker exits."""
    with (
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        for byte in (b"a", b"b"):
            sock.sendall(byte)
            assert sock.recv(1) == byte
            if byte == b"a":
                pair.destination.send(m.Drain(deadline_seconds=20))
                wait_until(lambda: not _listens(pair.server.where), WAITS["traffic"])
                assert not works(pair)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    pair.destination.wait_for(m.Drained)
    assert pair.destination.process.wait(WAITS["traffic"].seconds) == 0
    assert "internal error" not in pair.source.log() + pair.destination.log()


def test_drain_serves_who_is_in_the_handshake() -> None:
    """A reload must not cost the requests that wait for a connection that is just being made."""
    with captured_pair() as pair:
        pair.route(APP_PORT)
        pair.destination.silent.add(m.NeedCertificate)
        with (
            apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
            pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
        ):
            sock.settimeout(WAITS["traffic"].seconds)
            sock.sendall(b"x")
            identity = pair.destination.wait_for(m.NeedCertificate).identity
            pair.destination.send(m.Drain(deadline_seconds=20))
            pair.destination.give_certificate(identity, pair.destination.certificates[identity])
            assert sock.recv(1) == b"x"
        pair.destination.wait_for(m.Drained)


def test_drain_ends_at_its_deadline(pair: Pair) -> None:
    """What has not finished by then is reset."""
    with (
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        pair.destination.send(m.Drain(deadline_seconds=0.2))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert pair.destination.process.wait(WAITS["traffic"].seconds) == 0


def test_worker_drains_when_main_dies(pair: Pair) -> None:
    """Open connections survive main by a while; an idle worker goes at once."""
    with (
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        pair.destination.hang_up()
        pair.destination.log_line("main process is gone: draining")
        sock.sendall(b"b")
        assert sock.recv(1) == b"b"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert pair.destination.process.wait(WAITS["traffic"].seconds) == 0


def test_removed_workload_is_closed_at_once(pair: Pair) -> None:
    """Its namespace is about to go: connections end, listeners are gone."""
    with (
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        pair.destination.send(m.RemoveWorkload(uid=pair.server.uid))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert not works(pair)


def test_removed_workload_tells_its_peers(pair: Pair) -> None:
    """GOAWAY comes before the end, though the namespace may be gone already (ztunnel#1191)."""
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo), hbone_client(pair) as client:
        assert client.connect(f"{pair.server.addresses[0]}:{APP_PORT}")[1] == "200"
        pair.destination.send(m.RemoveWorkload(uid=pair.server.uid))
        assert client.wait_goaway() == 0


def test_killed_worker_resets_and_another_takes_over(pair: Pair) -> None:
    """Death of the other side is an error, never an end of data; the pool starts afresh."""
    with (
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        pair.destination.process.kill()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        with FakeMain() as successor:
            successor.certificates = pair.destination.certificates
            successor.add(pair.server)
            successor.policies(pair.server)
            assert works(pair)


def test_open_connections_are_listed(pair: Pair) -> None:
    """For the admin page: who talks to whom, and how."""
    with (
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        pair.source.send(m.Collect(request_id=1, what="connections"))
        (entry,) = pair.source.wait_for(m.ConnectionsReply).connections
        server, client = pair.server.addresses[0], pair.client.addresses[0]
        assert entry == {
            "uid": pair.client.uid,
            "direction": "outbound",
            "src": f"{client}:{sock.getsockname()[1]}",
            "original_dst": f"{server}:{APP_PORT}",
            "actual_dst": f"{server}:15008",
            "protocol": "HBONE",
        }


def test_workers_stay_small(pair: Pair) -> None:
    """No grpc, protobuf, cryptography or asyncio in a worker; at most 20 MB each after work."""
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
        for _ in range(20):
            assert works(pair)
    for main in (pair.source, pair.destination):
        proc = Path(f"/proc/{main.process.pid}")
        loaded = (proc / "maps").read_text()
        assert not [x for x in ("grpc", "upb", "_rust", "_asyncio") if x in loaded]
        rollup = (proc / "smaps_rollup").read_text().splitlines()
        pss = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        assert pss < 20 * 1024
