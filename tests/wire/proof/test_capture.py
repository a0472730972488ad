"""The proof library proves: what it says about HBONE is seen on real traffic, and the negative
twin of every question, asked about plaintext, gives the other answer."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from metalmesh.constants import PORT_HBONE
from tests.support import tls13
from tests.support.capture import BlindCaptureError, Capture, Link, capture
from tests.support.netns import Netns, netns_pair
from tests.support.peers import HboneClient, HboneServer
from tests.support.pki import CertificateAuthority

pytestmark = pytest.mark.root
CLIENT_ID = "spiffe://cluster.local/ns/demo/sa/sleep"
SERVER_ID = "spiffe://cluster.local/ns/demo/sa/echo"
AUTHORITY = "198.18.0.2:8080"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Netns, Netns]]:
    with netns_pair() as both:
        yield both


def talk_hbone(
    pair: tuple[Netns, Netns], directory: Path, marker: bytes, *, connections: int = 1
) -> tuple[Capture, str]:
    """An mTLS HTTP/2 CONNECT exchange of the marker, recorded."""
    client, server = pair
    mesh = CertificateAuthority()
    keylog = directory / "keys.log"
    serving = mesh.leaf(SERVER_ID).context(ssl.PROTOCOL_TLS_SERVER, keylog=keylog)
    calling = mesh.leaf(CLIENT_ID).context(ssl.PROTOCOL_TLS_CLIENT)
    with (
        HboneServer(server.listen(PORT_HBONE), serving),
        capture(Link(client.path, "eth0"), directory=directory) as recording,
    ):
        for _ in range(connections):
            plain = client.connect(server.address, PORT_HBONE)
            with HboneClient(plain, calling) as peer:
                stream, status = peer.connect(AUTHORITY, ("baggage", ""))
                assert status == "200"
                assert peer.exchange(stream, marker) == marker
    return recording, keylog.read_text()


def talk_plaintext(pair: tuple[Netns, Netns], directory: Path, marker: bytes) -> Capture:
    """The same exchange without a mesh, in two halves that share no packet."""
    client, server = pair
    with (
        server.listen(8080) as listener,
        capture(Link(client.path, "eth0"), "tcp", directory=directory) as recording,
    ):
        thread = threading.Thread(target=_echo_once, args=(listener, len(marker)))
        thread.start()
        with client.connect(server.address, 8080) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for half in (marker[:9], marker[9:]):
                plain.sendall(half)
            while plain.recv(4096):
                pass
        thread.join()
    return recording


def _echo_once(listener: socket.socket, length: int) -> None:
    peer, _ = listener.accept()
    with peer:
        received = bytearray()
        while len(received) < length:
            received += peer.recv(65536)
        peer.sendall(received)


def test_hbone_traffic_is_proven(pair: tuple[Netns, Netns], tmp_path: Path) -> None:
    """Port, version, both certificates, the CONNECT request: all from the recording."""
    marker = secrets.token_hex(16).encode()
    recording, keylog = talk_hbone(pair, tmp_path, marker, connections=2)
    client, server = pair
    assert recording.ports_between({client.address}, {server.address}) == {f"tcp/{PORT_HBONE}"}
    assert not recording.plaintext_contains(marker)
    connections = recording.tls_handshakes(keylog)
    assert len(connections) == 2
    for connection in connections:
        assert connection.version == tls13.TLS_1_3
        assert connection.certificate_requested
        assert connection.client_proved
        assert connection.client_uris == (CLIENT_ID,)
        assert connection.server_uris == (SERVER_ID,)
        assert not connection.server_name
        assert marker in connection.client_data
        assert marker in connection.server_data
    assert (
        recording.hbone_requests(keylog)
        == [{":method": "CONNECT", ":authority": AUTHORITY, "baggage": ""}] * 2
    )


def test_plaintext_traffic_is_not_proven(pair: tuple[Netns, Netns], tmp_path: Path) -> None:
    """Negative twin: the marker is found over packet borders, the port is another."""
    marker = secrets.token_hex(16).encode()
    recording = talk_plaintext(pair, tmp_path, marker)
    client, server = pair
    assert recording.ports_between({client.address}, {server.address}) == {"tcp/8080"}
    assert recording.plaintext_contains(marker)
    assert recording.tls_handshakes("") == []


def test_missing_client_certificate_is_seen(pair: tuple[Netns, Netns], tmp_path: Path) -> None:
    """Negative twin of mutual TLS: a server that does not ask gets none, and that shows."""
    client, server = pair
    mesh = CertificateAuthority()
    keylog = tmp_path / "keys.log"
    serving = mesh.leaf(SERVER_ID).context(ssl.PROTOCOL_TLS_SERVER, keylog=keylog)
    serving.verify_mode = ssl.CERT_NONE
    calling = mesh.leaf(CLIENT_ID).context(ssl.PROTOCOL_TLS_CLIENT)
    with (
        HboneServer(server.listen(PORT_HBONE), serving),
        capture(Link(server.path, "eth0"), directory=tmp_path) as recording,
        HboneClient(client.connect(server.address, PORT_HBONE), calling) as peer,
    ):
        assert peer.connect(AUTHORITY)[1] == "200"
    (connection,) = recording.tls_handshakes(keylog.read_text())
    assert not connection.certificate_requested
    assert not connection.client_proved
    assert connection.client_uris == ()


def test_missing_secrets_are_an_error(pair: tuple[Netns, Netns], tmp_path: Path) -> None:
    """A connection that cannot be decrypted must not pass for one that was examined."""
    recording, keylog = talk_hbone(pair, tmp_path, b"marker of this test")
    assert recording.tls_handshakes(keylog)
    with pytest.raises(tls13.TlsError, match="key log has no"):
        tls13.decrypt(recording.streams, "")


def test_capture_without_packets_is_an_error(pair: tuple[Netns, Netns], tmp_path: Path) -> None:
    """An empty recording proves nothing, so it may not end quietly."""
    link = Link(pair[0].path, "eth0")
    with (
        pytest.raises(BlindCaptureError, match="no packet at all"),
        capture(link, "tcp port 1", directory=tmp_path),
    ):
        pass


def test_capture_of_a_burst_is_complete(pair: tuple[Netns, Netns], tmp_path: Path) -> None:
    """Ten megabytes at full speed arrive in the recording without a hole."""
    payload = secrets.token_bytes(1 << 20) * 10
    recording = talk_plaintext(pair, tmp_path, payload)
    lengths = sorted(len(stream.data) for stream in recording.streams if stream.complete)
    assert lengths == [len(payload), len(payload)]
