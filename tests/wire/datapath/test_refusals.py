"""What an HBONE listener refuses, each with its status or alert and a log line that says why."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import struct
from collections.abc import Callable

import pytest

from metalmesh.constants import PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND
from tests.support import tcp_apps as apps
from tests.support.data_worker import Pair, dial_uncaptured, hbone_client
from tests.support.peers import HboneClient
from tests.support.pki import CertificateAuthority, Credentials
from tests.support.waits import WAITS
from tests.wire.datapath.conftest import APP_PORT

CLIENT = "spiffe://cluster.local/ns/test/sa/client"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def still_serves(pair: Pair) -> bool:
    """The listener has survived."""
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
        return apps.echo_through(pair.client.where, pair.server.addresses[0], APP_PORT, 1000)


# --- who the client is
def _expired(ca: CertificateAuthority) -> Credentials:
    return ca.leaf(CLIENT, valid_for=datetime.timedelta(minutes=-5))


def _foreign(ca: CertificateAuthority) -> Credentials:
    leaf = CertificateAuthority("foreign root").leaf(CLIENT)
    return Credentials(leaf.chain, leaf.key, ca.root_pem)


def _self_signed(ca: CertificateAuthority) -> Credentials:
    alone = CertificateAuthority("self")
    leaf = alone.leaf(CLIENT)
    return Credentials(leaf.chain + alone.root_pem, leaf.key, ca.root_pem)


BAD_CERTIFICATES: dict[str, tuple[Callable[[CertificateAuthority], Credentials], str]] = {
    "expired": (_expired, "certificate has expired"),
    "foreign": (_foreign, "unable to get local issuer certificate"),
    "self-signed": (_self_signed, "self-signed certificate"),
    "trust domain": (
        lambda ca: ca.leaf("spiffe://other.org/ns/test/sa/client"),
        "peer did not present the expected trustdomain (cluster.local), "
        "got spiffe://other.org/ns/test/sa/client",
    ),
    "no identity": (
        lambda ca: ca.leaf("https://example.org/client"),
        "peer did not present the expected trustdomain (cluster.local), got none",
    ),
}


def _ask(pair: Pair, dial: Callable[[], HboneClient]) -> str:
    """Dial and send a CONNECT: its status, or that the connection was refused."""
    try:
        with dial() as client:
            status = client.connect(f"{pair.server.addresses[0]}:{APP_PORT}")[1]
    except (ssl.SSLError, ConnectionError):
        return "refused"
    return "refused" if status == "closed" else status


@pytest.mark.parametrize("kind", BAD_CERTIFICATES)
def test_bad_client_certificate_is_refused(shared_pair: Pair, kind: str) -> None:
    """TLS 1.3 clients learn of a refused certificate with their first read."""
    make, complaint = BAD_CERTIFICATES[kind]
    assert _ask(shared_pair, lambda: hbone_client(shared_pair, make(shared_pair.ca))) == "refused"
    line = shared_pair.destination.log_line("connection failed", complaint)
    assert 'direction="inbound"' in line
    assert still_serves(shared_pair)


def test_client_without_certificate_is_refused(shared_pair: Pair) -> None:
    """Mutual TLS is not optional."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=shared_pair.ca.root_pem.decode())
    context.set_alpn_protocols(["h2"])
    plain = dial_uncaptured(shared_pair.client.where, shared_pair.server.addresses[0], PORT_HBONE)
    with contextlib.suppress(ssl.SSLError, ConnectionError), context.wrap_socket(plain) as sock:
        assert sock.recv(1) == b""  # nothing is said to it, not even SETTINGS
    shared_pair.destination.log_line("peer did not return a certificate")


def test_tls_1_2_is_refused(shared_pair: Pair) -> None:
    """TLS 1.3 only."""
    with pytest.raises((ssl.SSLError, ConnectionError)):
        hbone_client(shared_pair, maximum=ssl.TLSVersion.TLSv1_2)
    shared_pair.destination.log_line("connection failed", "unsupported protocol")


@pytest.mark.parametrize("protocols", [("http/1.1",), ()], ids=["http/1.1", "none"])
def test_other_application_protocol_is_refused(
    shared_pair: Pair, protocols: tuple[str, ...]
) -> None:
    """ALPN must choose h2."""
    assert _ask(shared_pair, lambda: hbone_client(shared_pair, alpn=protocols)) == "refused"
    shared_pair.destination.log_line("connection failed", "h2 are required")


def test_http_1_over_h2_tls_is_refused(shared_pair: Pair) -> None:
    """Whoever says h2 must speak it."""
    credentials = shared_pair.ca.leaf(CLIENT)
    plain = dial_uncaptured(shared_pair.client.where, shared_pair.server.addresses[0], PORT_HBONE)
    context = credentials.context(ssl.PROTOCOL_TLS_CLIENT)
    with context.wrap_socket(plain) as sock:
        sock.sendall(b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = apps.read_all(sock)
    assert b"HTTP/1" not in answer
    shared_pair.destination.log_line("http2 handshake failed", "not an HTTP/2 preface")


# --- what it asks for
REQUESTS: dict[str, tuple[list[tuple[str, str]], str, str]] = {
    "get": (
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "SELF:8080")],
        "400",
        "method 'GET': only CONNECT",
    ),
    "extended connect": (
        [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", "/"),
            (":authority", "SELF:8080"),
        ],
        "400",
        "only plain CONNECT",
    ),
    "no port": ([(":method", "CONNECT"), (":authority", "SELF")], "400", "expected HOST:PORT"),
    "port 0": ([(":method", "CONNECT"), (":authority", "SELF:0")], "400", "port must be"),
    "port 65536": ([(":method", "CONNECT"), (":authority", "SELF:65536")], "400", "port must be"),
    "loopback": ([(":method", "CONNECT"), (":authority", "127.0.0.1:8080")], "400", "ip mismatch"),
    "other host": ([(":method", "CONNECT"), (":authority", "192.0.2.1:80")], "400", "ip mismatch"),
    "host name": (
        [(":method", "CONNECT"), (":authority", "example.org:80")],
        "503",
        "unknown hostname",
    ),
    **{
        f"own port {port}": (
            [(":method", "CONNECT"), (":authority", f"SELF:{port}")],
            "503",
            f"port {port} belongs to the proxy",
        )
        for port in (PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT, PORT_HBONE)
    },
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_bad_request_gets_its_status(shared_pair: Pair, kind: str) -> None:
    """Never an open proxy: only addresses of the workload itself are served."""
    fields, status, complaint = REQUESTS[kind]
    own = shared_pair.server.addresses[0]
    with hbone_client(shared_pair) as client:
        sent = [(name, value.replace("SELF", own)) for name, value in fields]
        assert client.request(sent)[1] == status
        shared_pair.destination.log_line("connection failed", complaint)
        with apps.tcp_app(shared_pair.server.where, APP_PORT, apps.echo):
            stream, answer = client.connect(f"{own}:{APP_PORT}")  # the connection goes on
            assert answer == "200"
            assert client.exchange(stream, b"hello") == b"hello"


# --- direct dials to the proxy's own ports
@pytest.mark.parametrize("port", [PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT])
@pytest.mark.parametrize("target", ["own", "127.0.0.1"])
def test_direct_dial_from_inside_is_refused(shared_pair: Pair, port: int, target: str) -> None:
    """The proxy must not call itself in circles."""
    client = shared_pair.client
    address = client.addresses[0] if target == "own" else target
    with pytest.raises(ConnectionResetError):  # when dialling or right after
        client.where.connect(address, port).recv(1)
    error = "recursive call" if port == PORT_OUTBOUND else f"port {port} belongs to the proxy"
    shared_pair.source.log_line("connection failed", error)


@pytest.mark.parametrize("port", [PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT])
def test_direct_dial_from_outside_is_refused(shared_pair: Pair, port: int) -> None:
    """Plaintext to a proxy port is captured and dropped."""
    with pytest.raises(ConnectionResetError):  # when dialling or right after
        dial_uncaptured(shared_pair.client.where, shared_pair.server.addresses[0], port).recv(1)
    shared_pair.destination.log_line("connection failed", f"port {port} belongs to the proxy")


# --- floods and stalls
def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame, well formed or not."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


HELLO = PREFACE + frame(4, 0, 0, b"")
CONNECT_BLOCK = b"\x02\x07CONNECT\x01\x0f" + b"198.18.0.2:9999"
FLOODS: dict[str, tuple[bytes, int, str]] = {
    "ping": (frame(6, 0, 0, bytes(8)), 50_000, "flood of PING"),
    "settings": (frame(4, 0, 0, b""), 50_000, "flood of SETTINGS"),
    "priority": (frame(2, 0, 1, bytes(5)), 50_000, "flood of PRIORITY"),
    "unknown": (frame(99, 0, 0, b""), 50_000, "flood of unknown"),
    "continuation": (
        frame(1, 0, 1, CONNECT_BLOCK) + frame(9, 0, 1, b"") * 100,
        1,
        "header block is too long",
    ),
    "header block": (
        frame(1, 0, 1, CONNECT_BLOCK) + frame(9, 0, 1, bytes(16000)) * 10,
        1,
        "header block is too long",
    ),
    "huge frame": (frame(1, 4, 1, bytes(100_000)), 1, "is too long"),
    "huge data": (struct.pack(">IBI", (2 << 20) << 8, 0, 1), 1, "is too long"),
    "padding": (frame(0, 8, 1, b"\xff" + bytes(3)), 1, "padding longer"),
    "push": (frame(5, 4, 1, bytes(8)), 1, "PUSH_PROMISE"),
    "zero window": (frame(8, 0, 0, bytes(4)), 1, "WINDOW_UPDATE of 0"),
    "window overflow": (frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2, 1, "window overflows"),
    "idle data": (frame(0, 0, 7, b"x"), 1, "never opened"),
    "even stream": (frame(1, 4, 2, CONNECT_BLOCK), 1, "not a client's"),
    "bad hpack": (frame(1, 4, 1, b"\xff\xff\xff\xff\xff"), 1, "header block"),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_hostile_peer_loses_its_connection_only(shared_pair: Pair, kind: str) -> None:
    """Bounded state per connection: who breaks the protocol gets GOAWAY, others notice nothing."""
    unit, count, complaint = FLOODS[kind]
    plain = dial_uncaptured(shared_pair.client.where, shared_pair.server.addresses[0], PORT_HBONE)
    context = shared_pair.ca.leaf(CLIENT).context(ssl.PROTOCOL_TLS_CLIENT)
    with context.wrap_socket(plain) as sock:
        sender = apps.send_in_background(sock, HELLO + unit * count)
        answer = bytearray()
        try:
            while data := sock.recv(65536):
                answer += data
        except (ConnectionError, ssl.SSLError):  # it closed while we were still talking
            pass
        sender.join()
    shared_pair.destination.log_line("connection failed", complaint)
    assert still_serves(shared_pair)


def test_rapid_reset_ends_the_connection(shared_pair: Pair) -> None:
    """CVE-2023-44487: opening and resetting streams costs the server more than the client."""
    plain = dial_uncaptured(shared_pair.client.where, shared_pair.server.addresses[0], PORT_HBONE)
    context = shared_pair.ca.leaf(CLIENT).context(ssl.PROTOCOL_TLS_CLIENT)
    with (
        apps.tcp_app(shared_pair.server.where, 9999, apps.echo),
        context.wrap_socket(plain) as sock,
    ):
        pairs = (
            frame(1, 4, stream, CONNECT_BLOCK) + frame(3, 0, stream, bytes(4))
            for stream in range(1, 20_000, 2)
        )
        sender = apps.send_in_background(sock, HELLO + b"".join(pairs))
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while sock.recv(65536):
                pass
        sender.join()
    shared_pair.destination.log_line("connection failed", "flood of rapid RST_STREAM")
    assert still_serves(shared_pair)


def test_more_streams_than_granted_are_refused(shared_pair: Pair) -> None:
    """The server grants 200; the rest is told to try elsewhere."""
    with (
        apps.tcp_app(shared_pair.server.where, APP_PORT, apps.echo),
        hbone_client(shared_pair) as client,
    ):
        answers = client.flood(f"{shared_pair.server.addresses[0]}:{APP_PORT}", 210)
    assert answers.count("200") == 200
    assert answers.count("reset") == 10


def test_peer_that_stalls_is_dropped(shared_pair: Pair) -> None:
    """Nothing after the TCP handshake, or nothing after the TLS handshake: 10 s."""
    address = shared_pair.server.addresses[0]
    tcp = dial_uncaptured(shared_pair.client.where, address, PORT_HBONE)
    context = shared_pair.ca.leaf(CLIENT).context(ssl.PROTOCOL_TLS_CLIENT)
    tls = context.wrap_socket(dial_uncaptured(shared_pair.client.where, address, PORT_HBONE))
    for sock in (tcp, tls):
        sock.settimeout(WAITS["refused"].seconds)
        with sock, contextlib.suppress(ConnectionError):
            while sock.recv(65536):  # the server's own SETTINGS, then the end
                pass
    shared_pair.destination.log_line("connection failed", "tls handshake error: timed out")
    shared_pair.destination.log_line("connection failed", "http2 handshake failed: timed out")


def test_only_aes_gcm_suites_are_spoken(shared_pair: Pair) -> None:
    """The faster of the two is chosen from all that a client offers."""
    with hbone_client(shared_pair) as client:
        assert client.socket.cipher()[0] == "TLS_AES_128_GCM_SHA256"


def test_garbage_instead_of_tls_is_refused(shared_pair: Pair) -> None:
    """Plaintext to 15008 gets an alert and nothing else."""
    with dial_uncaptured(
        shared_pair.client.where, shared_pair.server.addresses[0], PORT_HBONE
    ) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in apps.read_all(sock)
    shared_pair.destination.log_line("connection failed", "tls handshake error")


def test_independent_client_is_served(shared_pair: Pair) -> None:
    """The positive twin of everything above: the same client, doing it right."""
    with (
        apps.tcp_app(shared_pair.server.where, APP_PORT, apps.echo) as callers,
        hbone_client(shared_pair) as client,
    ):
        assert isinstance(client, HboneClient)
        stream, status = client.connect(f"{shared_pair.server.addresses[0]}:{APP_PORT}")
        assert status == "200"
        assert client.exchange(stream, b"hello" * 1000) == b"hello" * 1000
    assert callers == [shared_pair.client.addresses[0]]
