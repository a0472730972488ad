"""Peers that must get nothing: at 15008 from outside, and at a proxy's own ports from inside.

All of them are written with ``ssl`` and the ``h2`` library. The positive twin first: a peer with
good credentials is served, so a refusal below is the rogue's fault.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
from collections.abc import Callable, Iterator

import pytest

from metalmesh.constants import PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND
from tests.lab.cast import APP_PORT, NAMESPACE, Cast
from tests.support.apps import ask, new_marker
from tests.support.control_plane import authority_of
from tests.support.mesh import Mesh
from tests.support.peers import HboneClient
from tests.support.pki import CertificateAuthority, Credentials
from tests.support.waits import WAITS

REFUSED = (ssl.SSLError, ConnectionError)


@pytest.fixture(scope="module")
def authority(mesh: Mesh) -> CertificateAuthority:
    """The lab's own CA; only the tests would let it sign for strangers."""
    return authority_of(mesh.control_plane)


@pytest.fixture
def good(authority: CertificateAuthority, cast: Cast) -> Credentials:
    """What a workload of the mesh would have."""
    return authority.leaf(cast.peer.identity)


@pytest.fixture
def peer(mesh: Mesh, cast: Cast, good: Credentials) -> Iterator[HboneClient]:
    """A peer with good credentials, connected to the server's 15008 from outside of the nodes."""
    with HboneClient(_dial(mesh, cast), good.context(ssl.PROTOCOL_TLS_CLIENT)) as client:
        yield client


def _dial(mesh: Mesh, cast: Cast) -> socket.socket:
    (outside, *_) = mesh.external
    return outside.netns.connect(cast.server.address, PORT_HBONE)


def test_peer_with_good_credentials_is_served(cast: Cast, peer: HboneClient) -> None:
    """Positive twin of everything below."""
    stream, status = peer.connect(f"{cast.server.address}:{APP_PORT}")
    assert status == "200"
    marker = new_marker()
    assert peer.exchange(stream, marker) == marker


Rogue = Callable[[CertificateAuthority, str], ssl.SSLContext]


def _context(credentials: Credentials, trust: CertificateAuthority, **options) -> ssl.SSLContext:
    """A rogue trusts the mesh, so that it is the server who refuses."""
    context = credentials.context(ssl.PROTOCOL_TLS_CLIENT, **options)
    context.load_verify_locations(cadata=trust.root_pem.decode())
    return context


def no_certificate(mesh_ca: CertificateAuthority, identity: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=mesh_ca.root_pem.decode())
    context.set_alpn_protocols(["h2"])
    return context


def tls_1_2(mesh_ca: CertificateAuthority, identity: str) -> ssl.SSLContext:
    return _context(mesh_ca.leaf(identity), mesh_ca, maximum=ssl.TLSVersion.TLSv1_2)


def http_1_1(mesh_ca: CertificateAuthority, identity: str) -> ssl.SSLContext:
    return _context(mesh_ca.leaf(identity), mesh_ca, alpn=("http/1.1",))


def foreign_ca(mesh_ca: CertificateAuthority, identity: str) -> ssl.SSLContext:
    return _context(CertificateAuthority("a stranger").leaf(identity), mesh_ca)


def self_signed(mesh_ca: CertificateAuthority, identity: str) -> ssl.SSLContext:
    return _context(mesh_ca.self_signed(identity), mesh_ca)


def expired(mesh_ca: CertificateAuthority, identity: str) -> ssl.SSLContext:
    over = datetime.timedelta(minutes=-5)
    return _context(mesh_ca.leaf(identity, valid_for=over), mesh_ca)


def other_trust_domain(mesh_ca: CertificateAuthority, identity: str) -> ssl.SSLContext:
    return _context(mesh_ca.leaf(f"spiffe://elsewhere.example/ns/{NAMESPACE}/sa/peer"), mesh_ca)


def no_spiffe_identity(mesh_ca: CertificateAuthority, identity: str) -> ssl.SSLContext:
    return _context(mesh_ca.leaf("https://example.com/not-spiffe"), mesh_ca)


@pytest.mark.parametrize(
    ("rogue", "error"),
    [
        (no_certificate, "peer did not return a certificate"),
        (tls_1_2, "unsupported protocol"),
        (http_1_1, "h2"),
        (foreign_ca, "self-signed certificate in certificate chain"),
        (self_signed, "certificate verify failed: self-signed certificate"),
        (expired, "certificate has expired"),
        (other_trust_domain, "did not present the expected trustdomain (cluster.local)"),
        (no_spiffe_identity, "did not present the expected trustdomain (cluster.local)"),
    ],
)
def test_rogue_handshake_is_refused(
    mesh: Mesh, cast: Cast, authority: CertificateAuthority, rogue: Rogue, error: str
) -> None:
    """No CONNECT is ever answered, the application sees nobody, the log says who and why."""
    log = mesh.access_log(cast.server.node)
    del cast.callers["server"][:]
    context = rogue(authority, cast.peer.identity)
    status = "refused"
    # TLS 1.3: a client learns that its certificate was refused with its first read.
    with contextlib.suppress(*REFUSED), HboneClient(_dial(mesh, cast), context) as client:
        _, status = client.connect(f"{cast.server.address}:{APP_PORT}")
    assert status in ("refused", "closed")
    assert cast.callers["server"] == []
    (outside, *_) = mesh.external
    log.wait("connection failed", f"src.addr={outside.address}:", error)


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_methods_are_refused(cast: Cast, peer: HboneClient, method: str) -> None:
    """Only CONNECT is HBONE: 400 (facts 2.2)."""
    address = f"{cast.server.address}:{APP_PORT}"
    headers = [(":method", method), (":scheme", "http"), (":authority", address), (":path", "/")]
    assert peer.request(headers)[1] == "400"


@pytest.mark.parametrize(
    ("authority_of_request", "status"),
    [
        ("{other}:8080", "400"),
        ("{node}:22", "400"),
        ("127.0.0.1:8080", "400"),
        ("{server}", "400"),
        ("{server}:0", "400"),
        ("{server}:15001", "503"),
        ("{server}:15006", "503"),
        ("{server}:15008", "503"),
        ("{server}:1", "503"),
    ],
)
def test_connect_to_what_is_not_ours_is_refused(
    mesh: Mesh, cast: Cast, peer: HboneClient, authority_of_request: str, status: str
) -> None:
    """Never an open proxy: other workloads, the node, loopback, a proxy's own ports."""
    authority = authority_of_request.format(
        server=cast.server.address, other=cast.other.address, node=cast.server.node.address
    )
    before = {name: list(seen) for name, seen in cast.callers.items()}
    assert peer.connect(authority)[1] == status
    assert cast.callers == before
    assert peer.connect(f"{cast.server.address}:{APP_PORT}")[1] == "200", "the connection lives on"


@pytest.mark.parametrize("port", [PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT, PORT_HBONE])
@pytest.mark.parametrize("own_address", [True, False], ids=["own address", "loopback"])
def test_proxy_ports_serve_nobody_from_inside(cast: Cast, port: int, own_address: bool) -> None:
    """A direct connection to a proxy's port is dropped; it cannot make a loop."""
    address = cast.client.address if own_address else "127.0.0.1"
    for _ in range(5):
        assert ask(cast.client.netns, address, port, b"GET / HTTP/1.1\r\n\r\n") == b""
    assert ask(cast.client.netns, cast.server.address, APP_PORT, b"fine") == b"fine"


def test_plaintext_to_15008_is_refused(mesh: Mesh, cast: Cast) -> None:
    """15008 speaks TLS or nothing."""
    (outside, *_) = mesh.external
    answer = ask(outside.netns, cast.server.address, PORT_HBONE, b"GET / HTTP/1.1\r\n\r\n")
    assert b"HTTP" not in answer


def test_stalling_and_vanishing_peers_hold_nobody_up(
    mesh: Mesh, cast: Cast, good: Credentials
) -> None:
    """Half-open handshakes, silent tunnels and resets cost other clients nothing."""
    context = good.context(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(_dial(mesh, cast))
            half = stack.enter_context(_dial(mesh, cast))
            half.sendall(b"\x16\x03\x01\x02\x00\x01")
            silent = stack.enter_context(HboneClient(_dial(mesh, cast), context))
            assert silent.connect(f"{cast.server.address}:{APP_PORT}")[1] == "200"
            gone = HboneClient(_dial(mesh, cast), context)
            gone.connect(f"{cast.server.address}:{APP_PORT}")
            linger = b"\x01\0\0\0\0\0\0\0"  # close with a reset
            gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            gone.socket.close()
        marker = new_marker()
        assert ask(cast.client.netns, cast.server.address, APP_PORT, marker) == marker


def test_flood_of_streams_is_bounded(cast: Cast, peer: HboneClient) -> None:
    """Beyond the advertised number of streams requests are refused, and service goes on."""
    authority = f"{cast.server.address}:{APP_PORT}"
    answers = peer.flood(authority, 300)
    assert set(answers) <= {"200", "reset"}
    assert 100 <= answers.count("200") <= 200
    assert ask(cast.client.netns, cast.server.address, APP_PORT, b"fine") == b"fine"


def test_stalled_handshake_is_given_up(mesh: Mesh, cast: Cast) -> None:
    """A peer that connects and says nothing is disconnected; it does not stay for ever."""
    with _dial(mesh, cast) as silent:
        silent.settimeout(WAITS["refused"].seconds)
        with contextlib.suppress(ConnectionError):
            assert silent.recv(1) == b""
