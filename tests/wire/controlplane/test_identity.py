"""Joining and certificates: who gets which identity, and what is said to whom (istio-facts 4)."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from metalmesh.constants import TYPE_ADDRESS, TYPE_AUTHORIZATION
from metalmesh.pki.keys import make_key
from metalmesh.pki.tokens import issue_node_token
from tests.support.waits import wait_until
from tests.unit.controlplane.conftest import entry
from tests.wire.controlplane.plane import CHANGE, Client, Plane, run, signing_request

A = "spiffe://cluster.local/ns/demo/sa/a"
IMPERSONATION = "request impersonation authentication failure"


def _refused(call: object, *arguments: object, **options: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code(), caught.value.details()


# --- certificates ----------------------------------------------------------------------------


def test_node_gets_certificates_of_its_workloads(plane: Plane) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    leaf_pem, issuing_pem, roots_pem = plane.client("node1").certificate(A)
    leaf, issuing, root = (
        x509.load_pem_x509_certificate(pem.encode()) for pem in (leaf_pem, issuing_pem, roots_pem)
    )
    leaf.verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [A]
    assert (
        before - timedelta(minutes=2)
        <= leaf.not_valid_before_utc
        <= before - timedelta(seconds=110)
    )
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(minutes=62)
    (line,) = plane.logged("certificate issued")
    assert (line["scope"], line["node"], line["identity"]) == ("audit", "node1", A)


def test_names_in_the_request_are_ignored(plane: Plane) -> None:
    csr = signing_request(
        x509.UniformResourceIdentifier("spiffe://cluster.local/ns/demo/sa/b"), x509.DNSName("evil")
    )
    chain = plane.client("node1").certificate(A, csr)
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [A]


REFUSED = {
    "of another node": ("spiffe://cluster.local/ns/demo/sa/b", "is placed on node 'node1'"),
    "unknown account": ("spiffe://cluster.local/ns/demo/sa/c", "is placed on node 'node1'"),
    "unknown namespace": ("spiffe://cluster.local/ns/other/sa/a", "is placed on node 'node1'"),
    "foreign trust domain": ("spiffe://evil/ns/demo/sa/a", "trust domain 'evil' is not ours"),
    "malformed": ("spiffe://cluster.local/demo/a", "is not of the form"),
    "with a query": ("spiffe://cluster.local/ns/demo/sa/a?x", "must be letters, digits"),
    "no identity": ("", "a node has no identity of its own"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_identity_that_does_not_live_on_the_node_is_refused(
    plane: Plane, case: tuple[str, str]
) -> None:
    """The client learns nothing, the audit log everything."""
    identity, reason = case
    assert _refused(plane.client("node1").certificate, identity) == (
        grpc.StatusCode.UNAUTHENTICATED,
        IMPERSONATION,
    )
    (line,) = plane.logged("certificate refused", reason=reason)
    assert (line["node"], line["identity"]) == ("node1", identity)
    assert plane.metric('metalmesh_controlplane_certificates_total{result="refused_identity"}') == 1


def test_identity_follows_its_workload(plane: Plane) -> None:
    first, second = plane.client("node1"), plane.client("node2")
    plane.put("a.yaml", entry("a", "10.0.0.1", node="node2"))

    def moved() -> bool:
        try:
            return bool(second.certificate(A))
        except grpc.RpcError:
            return False

    wait_until(moved, CHANGE)
    assert _refused(first.certificate, A)[1] == IMPERSONATION


def _weak() -> str:
    from cryptography.hazmat.primitives import hashes, serialization

    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(rsa.generate_private_key(65537, 1024), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("csr", "ttl", "reason"),
    [
        ("hello", 60, "cannot be parsed"),
        ("", 91 * 24 * 3600, "exceeds svid_max_ttl_seconds"),
        ("weak", 60, "2048 to 8192 bits"),
    ],
)
def test_bad_request_is_refused_opaquely(plane: Plane, csr: str, ttl: int, reason: str) -> None:
    client = plane.client("node1")
    text = _weak() if csr == "weak" else csr
    assert _refused(client.certificate, A, text, ttl) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "certificate signing request refused",
    )
    assert plane.logged("certificate refused", reason=reason)


def test_certificate_needs_a_token(plane: Plane) -> None:
    client = plane.client()
    code, text = _refused(client.certificate, A)
    assert (code, text) == (grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
    # signed by somebody else's key
    client.token = issue_node_token(make_key(), "node1", "x", int(time.time()), 600)
    assert _refused(client.certificate, A)[0] is grpc.StatusCode.UNAUTHENTICATED
    assert plane.logged("authentication refused", reason="Signature verification failed")


def test_certificates_of_an_identity_are_put_on_the_revocation_list(plane: Plane) -> None:
    """The audit log has the serial number, too."""
    client = plane.client("node1")
    leaves = [x509.load_pem_x509_certificate(client.certificate(A)[0].encode()) for _ in range(2)]
    places = ("--dir", str(plane.directory / "ca"), "--state-dir", str(plane.directory / "state"))
    answer = json.loads(run("ca", "revoke", *places, "--identity", A, "-o", "json"))
    serials = {f"{leaf.serial_number:x}" for leaf in leaves}
    assert {entry["serial"] for entry in answer["revoked"]} == serials
    assert {line["serial"] for line in plane.logged("certificate issued")} == serials
    found = x509.load_pem_x509_crl((plane.directory / "ca" / "crl.pem").read_bytes())
    issuing = (plane.directory / "ca" / "issuing-cert.pem").read_bytes()
    assert found.is_signature_valid(x509.load_pem_x509_certificate(issuing).public_key())
    assert found.get_revoked_certificate_by_serial_number(leaves[0].serial_number) is not None


# --- joining ---------------------------------------------------------------------------------


def test_join_token_works_once(plane: Plane) -> None:
    token, client = plane.join_token("node1"), plane.client()
    credential = client.join(token, "node1")
    assert 0 < credential.expires_at - time.time() <= 12 * 3600
    refused = (grpc.StatusCode.UNAUTHENTICATED, "join token refused")
    assert _refused(client.join, token, "node1") == refused
    assert plane.logged("join refused", reason="was used already")
    assert plane.logged("node joined", node="node1")


@pytest.mark.parametrize(
    ("token", "node", "reason"),
    [
        ("{token}", "node2", "is bound to node 'node1', not 'node2'"),
        ("{id}.wrong", "node1", "wrong secret"),
        ("0123456789abcdef.x", "node1", "is unknown"),
        ("../../etc/passwd", "node1", "malformed"),
        ("", "", "malformed"),
    ],
)
def test_join_is_refused_opaquely(plane: Plane, token: str, node: str, reason: str) -> None:
    real = plane.join_token("node1")
    given = token.format(token=real, id=real.split(".")[0])
    client = plane.client()
    assert _refused(client.join, given, node)[1] == "join token refused"
    (line,) = plane.logged("join refused", reason=reason)
    assert real.split(".")[1] not in str(line)
    client.join(real, "node1")


def test_of_many_joins_at_once_exactly_one_wins(plane: Plane) -> None:
    token = plane.join_token("node1")
    clients = [plane.client() for _ in range(8)]

    def attempt(client: Client) -> bool:
        try:
            return bool(client.join(token, "node1").node_token)
        except grpc.RpcError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, clients)) == 1


def test_node_token_is_renewed_by_itself_only(plane: Plane) -> None:
    client = plane.client("node1")
    fresh = client.renew()
    assert fresh.node_token != client.token
    client.token = fresh.node_token
    assert client.certificate(A)
    client.token = ""
    assert _refused(client.renew)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_of_a_revoked_node_are_void_until_it_joins_again(plane: Plane) -> None:
    """Also on streams that are open."""
    client, other = plane.client("node1"), plane.client("node2")
    stream, kept = client.stream(), other.stream()
    for item in (stream, kept):
        item.ask(TYPE_AUTHORIZATION)
        item.take()
    run("token", "revoke-node", "node1", "--tokens-dir", str(plane.directory / "tokens"))
    assert _refused(client.certificate, A)[1] == "request authenticate failure"
    assert _refused(client.renew)[0] is grpc.StatusCode.UNAUTHENTICATED
    assert plane.logged("authentication refused", reason="tokens of node node1 were revoked")
    with pytest.raises(grpc.RpcError) as caught:
        stream.next()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert other.renew().node_token
    kept.ask(TYPE_ADDRESS)
    assert kept.take().resources
    kept.close()
    wait_until(lambda: time.time() >= _next_second(plane), CHANGE)
    assert plane.client("node1").certificate(A)


def _next_second(plane: Plane) -> int:
    """Tokens count whole seconds: one of the second of the revocation is void, too."""
    return json.loads((plane.directory / "tokens" / "revoked-nodes").read_text())["node1"] + 1


# --- the server's own identity ---------------------------------------------------------------


def test_serving_certificate_is_of_the_mesh_and_carries_the_names(plane: Plane) -> None:
    context = ssl.create_default_context(cafile=str(plane.directory / "ca" / "root-cert.pem"))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", plane.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.selected_alpn_protocol() == "h2"
        cert = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_nothing_below_tls_1_3_is_spoken(plane: Plane, version: str) -> None:
    """Told apart by the handshake alone: gRPC also ends what offers no h2."""
    context = ssl.create_default_context(cafile=str(plane.directory / "ca" / "root-cert.pem"))
    context.maximum_version = ssl.TLSVersion[version]
    context.set_alpn_protocols(["h2"])
    refused = contextlib.nullcontext()
    if version == "TLSv1_2":
        refused = pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure|EOF occurred")
    with socket.create_connection(("127.0.0.1", plane.port), timeout=5) as plain, refused:
        assert context.wrap_socket(plain, server_hostname="localhost").version() == "TLSv1.3"


def test_client_that_trusts_another_root_does_not_connect(plane: Plane, tmp_path) -> None:
    from tests.support.pki import CertificateAuthority

    client = Client(plane, roots=CertificateAuthority().root_pem)
    assert _refused(client.join, "x", "y")[0] is grpc.StatusCode.UNAVAILABLE
