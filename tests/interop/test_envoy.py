"""Envoy on either side of the tunnel: the protocol is HBONE and not something of our own."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import APP_PORT, Replace, tunnels
from tests.support import tcp_apps as apps
from tests.support.data_worker import Pair
from tests.support.pki import CertificateAuthority, Credentials
from tests.support.waits import WAITS, wait_until

SIDES = pytest.mark.parametrize("side", ["destination", "source"])
GIGABYTE = 1 << 30
CHUNK = os.urandom(1 << 20)
TRANSFER_SECONDS = 120.0
#: what a worker may grow by while a gigabyte passes; Envoy's own buffers are megabytes, too
GROWTH_MB = 48
STREAMS = 200


def connect(pair: Pair) -> socket.socket:
    """A connection of the client's application, through the tunnel."""
    sock = pair.client.where.connect(pair.server.addresses[0], APP_PORT)
    sock.settimeout(WAITS["traffic"].seconds)
    return sock


def ours(pair: Pair, side: str):
    """Our worker, opposite of the Envoy on ``side``."""
    return pair.source if side == "destination" else pair.destination


def peak_megabytes(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def send_gigabyte(sock: socket.socket) -> str:
    """Send; return the digest of what was sent when the other side has ended."""
    digest = hashlib.sha256()
    for _ in range(GIGABYTE // len(CHUNK)):
        digest.update(CHUNK)
        sock.sendall(CHUNK)
    sock.recv(1)
    return digest.hexdigest()


def receive_gigabyte(sock: socket.socket) -> str:
    """Receive; end, and return the digest."""
    digest, left = hashlib.sha256(), GIGABYTE
    while left and (data := sock.recv(1 << 20)):
        digest.update(data)
        left -= len(data)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


@SIDES
def test_traffic_with_envoy_is_unchanged(pair: Pair, replaced: Replace, side: str) -> None:
    """Upload with digest, echo with half-close, and many connections over one tunnel."""
    address, client = pair.server.addresses[0], pair.client.where
    data = os.urandom(20_000_000)
    with replaced(side):
        with apps.tcp_app(pair.server.where, APP_PORT, apps.hash_upload), connect(pair) as sock:
            sock.settimeout(TRANSFER_SECONDS)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert apps.read_all(sock).decode() == hashlib.sha256(data).hexdigest()
        with apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
            assert apps.echo_through(client, address, APP_PORT, 8_000_000)
            for _ in range(20):
                assert apps.echo_through(client, address, APP_PORT, 1000)


@SIDES
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_gigabyte_passes_intact_in_bounded_memory(
    pair: Pair, replaced: Replace, side: str, direction: str
) -> None:
    found: list[str] = []
    with replaced(side):
        app, client = send_gigabyte, receive_gigabyte
        if direction == "up":
            app, client = client, app
        with (
            apps.tcp_app(pair.server.where, APP_PORT, lambda peer: found.append(app(peer))),
            connect(pair) as sock,
        ):
            sock.settimeout(TRANSFER_SECONDS)
            before = peak_megabytes(ours(pair, side).process.pid)
            mine = client(sock)
            wait_until(lambda: found, WAITS["traffic"], what="the other end of the gigabyte")
        assert found == [mine]
        assert peak_megabytes(ours(pair, side).process.pid) - before < GROWTH_MB


def test_server_may_end_first_and_still_listen(pair: Pair, replaced: Replace) -> None:
    """FIN of the server reaches the client; what the client says after it reaches the server.

    With Envoy as the client only: as the end of a CONNECT it resets the stream when its
    application ends first (half_close_initiated_full_close), and drops what it has not sent.
    """
    heard: list[bytes] = []

    def greet(peer: socket.socket) -> None:
        peer.sendall(b"that is all")
        peer.shutdown(socket.SHUT_WR)
        heard.append(apps.read_all(peer))

    with (
        replaced("source"),
        apps.tcp_app(pair.server.where, APP_PORT, greet),
        connect(pair) as sock,
    ):
        assert apps.read_all(sock) == b"that is all"
        sock.sendall(b"x" * 100_000)
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: heard, WAITS["traffic"])
    assert heard == [b"x" * 100_000]


def test_reset_of_an_application_behind_envoy_is_a_reset(pair: Pair, replaced: Replace) -> None:
    """An abnormal end stays one, whatever code Envoy gives it."""
    with (
        replaced("destination"),
        apps.tcp_app(pair.server.where, APP_PORT, apps.reset_after_request),
        connect(pair) as sock,
    ):
        sock.sendall(b"x" * 10)
        with pytest.raises(ConnectionResetError):
            sock.recv(10)


@SIDES
def test_two_hundred_streams_at_once(pair: Pair, replaced: Replace, side: str) -> None:
    """All open at the same time; ours opens a connection for every hundred."""
    with (
        replaced(side),
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        contextlib.ExitStack() as stack,
    ):
        socks = [stack.enter_context(connect(pair)) for _ in range(STREAMS)]
        for number, sock in enumerate(socks):
            sock.sendall(f"stream {number:03}".encode())
        for number, sock in enumerate(socks):
            assert sock.recv(64) == f"stream {number:03}".encode()
        assert tunnels(pair) == (2 if side == "destination" else 1)


@SIDES
@pytest.mark.parametrize("window", [65_535, 16 << 20], ids=["64K", "16M"])
def test_windows_of_every_size(pair: Pair, replaced: Replace, side: str, window: int) -> None:
    options = {"initial_stream_window_size": window, "initial_connection_window_size": window}
    with replaced(side, http2=options), apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
        address = pair.server.addresses[0]
        assert apps.echo_through(pair.client.where, address, APP_PORT, 8_000_000)


def test_stream_outlives_the_goaway_of_its_connection(pair: Pair, replaced: Replace) -> None:
    """Envoy says GOAWAY after a second: what is open goes on, what is new goes elsewhere."""
    lifetime = {"common_http_protocol_options": {"max_connection_duration": "1s"}}
    with (
        replaced("destination", drain_timeout="0.2s", **lifetime),
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        connect(pair) as old,
    ):
        old.sendall(b"before")
        assert old.recv(64) == b"before"

        def elsewhere() -> bool:
            assert apps.echo_through(pair.client.where, pair.server.addresses[0], APP_PORT, 100)
            return tunnels(pair) > 1

        wait_until(elsewhere, WAITS["traffic"], what="a second connection after GOAWAY")
        old.sendall(b"after")
        assert old.recv(64) == b"after"


def test_certificate_is_renewed_in_the_middle_of_a_stream(
    pair: Pair, replaced: Replace, tmp_path: Path
) -> None:
    """The stream goes on; the next connection shows Envoy the new certificate."""
    first, second = pair.ca.leaf(pair.client.identity), pair.ca.leaf(pair.client.identity)
    pair.source.give_certificate(pair.client.identity, first)
    with (
        replaced("destination", client=pair.client.identity),
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        contextlib.ExitStack() as stack,
    ):
        socks = [stack.enter_context(connect(pair)) for _ in range(100)]
        for sock in socks:
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
        pair.source.give_certificate(pair.client.identity, second)
        with connect(pair) as another:  # the first connection is full
            another.sendall(b"2")
            assert another.recv(1) == b"2"
            assert tunnels(pair) == 2
        for sock in socks:
            sock.sendall(b"3")
            assert sock.recv(1) == b"3"
            sock.close()
        log = tmp_path / "dst-access.log"

        def serials() -> set[int]:
            found = {line.rpartition("serial=")[2] for line in log.read_text().splitlines()}
            return {int(serial, 16) for serial in found}

        wait_until(lambda: serials() == {first.serial, second.serial}, WAITS["log_line"])


Wrong = Callable[[Pair, str], Credentials]
WRONG: dict[str, Wrong] = {
    "foreign CA": lambda _, identity: CertificateAuthority("foreign").leaf(identity),
    "expired": lambda pair, identity: pair.ca.leaf(
        identity, valid_for=datetime.timedelta(minutes=-5)
    ),
    "other trust domain": lambda pair, identity: pair.ca.leaf(
        identity.replace("cluster.local", "elsewhere.example")
    ),
    "self-signed": lambda pair, identity: pair.ca.self_signed(identity),
}
#: what only the name of an expected server tells
IMPOSTOR: Wrong = lambda pair, identity: pair.ca.leaf(identity + "-impostor")  # noqa: E731


@pytest.mark.parametrize("wrong", [*WRONG.values(), IMPOSTOR], ids=[*WRONG, "impostor"])
def test_envoy_with_a_wrong_identity_gets_no_traffic(
    pair: Pair, replaced: Replace, wrong: Wrong
) -> None:
    """Our client looks at the server; the application behind it never hears of the connection."""
    with (
        replaced("destination", credentials=wrong(pair, pair.server.identity)),
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo) as callers,
        connect(pair) as sock,
    ):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert callers == []
    pair.source.log_line("connection complete", "error=")


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_envoy_with_a_wrong_identity_is_not_let_in(
    pair: Pair, replaced: Replace, wrong: Wrong
) -> None:
    """Our server looks at the client."""
    with (
        replaced("source", credentials=wrong(pair, pair.client.identity)),
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo) as callers,
        connect(pair) as sock,
    ):
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert callers == []
    pair.destination.log_line("error=", 'direction="inbound"')


def test_envoy_refuses_our_wrong_identity(pair: Pair, replaced: Replace) -> None:
    """The other way round: its client certificate is demanded and checked."""
    foreign = CertificateAuthority("foreign").leaf(pair.client.identity)
    trusting = Credentials(foreign.chain, foreign.key, pair.ca.root_pem)
    pair.source.certificates[pair.client.identity] = trusting
    with (
        replaced("destination"),
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo) as callers,
        connect(pair) as sock,
    ):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert callers == []


def test_long_and_short_streams_share_a_connection(pair: Pair, replaced: Replace) -> None:
    """A bulk transfer through Envoy does not keep short exchanges waiting for its end."""
    with replaced("destination"), apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
        address, client = pair.server.addresses[0], pair.client.where
        done = threading.Event()

        def bulk() -> None:
            assert apps.echo_through(client, address, APP_PORT, 200_000_000)
            done.set()

        thread = threading.Thread(target=bulk)
        thread.start()
        short = 0
        while not done.is_set() and thread.is_alive():
            assert apps.echo_through(client, address, APP_PORT, 1000)
            short += 1
        thread.join()
        assert done.is_set()
        assert short > 3
