"""The authority: what it signs, and what it refuses (istio-facts 4, SPIFFE X509-SVID)."""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from metalmesh.errors import CertificateError
from metalmesh.model.identity import SpiffeId
from metalmesh.pki.ca import (
    CSR_MAX_BYTES,
    CertificateAuthority,
    certificate_to_pem,
    lifetime,
    load_authority,
    make_issuing,
    make_root,
    parse_certificates,
    read_request,
    sign_server,
    sign_workload,
)
from metalmesh.pki.keys import make_key

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DAY = timedelta(days=1)
IDENTITY = SpiffeId("mesh.test", "demo", "echo")


class Chain:
    """A root, an issuing certificate, and their keys."""

    def __init__(self, now: datetime = NOW) -> None:
        self.root_key, self.key = make_key(), make_key()
        self.root = make_root("mesh.test", self.root_key, now)
        self.issuing = make_issuing("mesh.test", self.key, self.root, self.root_key, now)

    def load(self, now: datetime = NOW) -> CertificateAuthority:
        return load_authority([self.root], [self.issuing], self.key, now)


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


@pytest.fixture(scope="module")
def leaf(chain: Chain) -> x509.Certificate:
    return sign_workload(chain.load(), make_key().public_key(), IDENTITY, DAY, NOW)


def _csr(key: object, *names: x509.GeneralName, subject: str = "") -> str:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = builder.sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.PEM).decode()


# --- what a workload certificate is ----------------------------------------------------------


def test_leaf_carries_exactly_the_identity_and_says_so_critically(leaf: x509.Certificate) -> None:
    """X509-SVID §2: one URI SAN; RFC 5280 §4.2.1.6: critical with an empty subject."""
    extension = leaf.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    assert [name.value for name in extension.value] == ["spiffe://mesh.test/ns/demo/sa/echo"]
    assert extension.critical
    assert not list(leaf.subject)


def test_leaf_is_no_authority_and_may_only_sign_handshakes(leaf: x509.Certificate) -> None:
    """X509-SVID §4.1 to §4.4."""
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_leaf_is_backdated_two_minutes_and_lives_as_long_as_asked(leaf: x509.Certificate) -> None:
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + DAY


def test_chain_is_one_certificate_per_element_with_all_roots_last(
    chain: Chain, leaf: x509.Certificate
) -> None:
    other = make_root("mesh.test", make_key(), NOW)
    authority = load_authority([chain.root, other], [chain.issuing], chain.key, NOW)
    pems = authority.chain_pems(leaf)
    assert pems == [
        certificate_to_pem(leaf),
        certificate_to_pem(chain.issuing),
        certificate_to_pem(chain.root) + certificate_to_pem(other),
    ]


def test_serving_certificate_passes_strict_verification(chain: Chain) -> None:
    """By cryptography's verifier, which follows the web's rules."""
    cert = sign_server(
        chain.load(), make_key().public_key(), ["cp1", "10.77.0.10", "fd77::10"], DAY, NOW
    )
    for subject in (x509.DNSName("cp1"), x509.IPAddress(ipaddress.ip_address("fd77::10"))):
        verifier = (
            PolicyBuilder().store(Store([chain.root])).time(NOW).build_server_verifier(subject)
        )
        assert verifier.verify(cert, [chain.issuing])[0] == cert


def test_serving_certificate_needs_a_name(chain: Chain) -> None:
    with pytest.raises(CertificateError, match="server_names is empty"):
        sign_server(chain.load(), make_key().public_key(), [], DAY, NOW)


def test_leaf_never_outlives_its_issuer(chain: Chain) -> None:
    now = chain.issuing.not_valid_after_utc - timedelta(minutes=5)
    cert = sign_workload(chain.load(now), make_key().public_key(), IDENTITY, DAY, now)
    assert cert.not_valid_after_utc == chain.issuing.not_valid_after_utc


def test_expired_authority_signs_nothing(chain: Chain) -> None:
    later = chain.issuing.not_valid_after_utc
    with pytest.raises(CertificateError, match=r"expired.*run metalmesh ca renew"):
        sign_workload(chain.load(), make_key().public_key(), IDENTITY, DAY, later)


def test_issuing_certificate_signs_leaves_only_and_ends_with_its_root() -> None:
    early = NOW - timedelta(days=3650 - 10)
    root_key = make_key()
    root = make_root("mesh.test", root_key, early)
    issuing = make_issuing("mesh.test", make_key(), root, root_key, NOW)
    constraints = issuing.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    assert issuing.not_valid_after_utc == root.not_valid_after_utc
    with pytest.raises(CertificateError, match="root certificate expired"):
        make_issuing("t", make_key(), root, root_key, NOW + timedelta(days=11))


# --- requests --------------------------------------------------------------------------------

GOOD_KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("make", GOOD_KEYS.values(), ids=GOOD_KEYS)
def test_request_gives_its_public_key(make: object) -> None:
    key = make()
    assert read_request(_csr(key)) == key.public_key()


def test_names_in_a_request_are_ignored(chain: Chain) -> None:
    names = [x509.DNSName("evil"), x509.UniformResourceIdentifier("spiffe://mesh.test/ns/a/sa/b")]
    key = read_request(_csr(make_key(), *names, subject="evil"))
    cert = sign_workload(chain.load(), key, IDENTITY, DAY, NOW)
    found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in found] == [str(IDENTITY)]
    assert not list(cert.subject)


def _signature_flipped() -> str:
    der = bytearray(
        x509.load_pem_x509_csr(_csr(rsa.generate_private_key(65537, 2048)).encode()).public_bytes(
            serialization.Encoding.DER
        )
    )
    der[-1] ^= 1
    body = base64.encodebytes(bytes(der)).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


BAD_REQUESTS = {
    "empty": (lambda: "", "cannot be parsed"),
    "text": (lambda: "hello", "cannot be parsed"),
    "certificate instead": (lambda: certificate_to_pem(Chain().root), "cannot be parsed"),
    "not signed by its key": (_signature_flipped, "not signed by its own key"),
    "too long": (lambda: "x" * (CSR_MAX_BYTES + 1), "exceeds 16384 bytes"),
    "RSA-1024": (
        lambda: _csr(rsa.generate_private_key(65537, 1024)),
        "2048 to 8192 bits, got 1024",
    ),
    "P-224": (lambda: _csr(ec.generate_private_key(ec.SECP224R1())), "curve secp224r1 is not"),
    "P-256K1": (lambda: _csr(ec.generate_private_key(ec.SECP256K1())), "curve secp256k1 is not"),
    "DSA": (lambda: _csr(dsa.generate_private_key(2048)), "must be ECDSA, RSA or Ed25519"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_request_is_refused(case: tuple) -> None:
    with pytest.raises(CertificateError, match=case[1]):
        read_request(case[0]())


@pytest.mark.parametrize(("asked", "given"), [(0, 100), (-5, 100), (1, 1), (1000, 1000)])
def test_lifetime_defaults_when_not_asked_for(asked: int, given: int) -> None:
    assert lifetime(asked, 100, 1000) == timedelta(seconds=given)


def test_lifetime_above_the_maximum_is_refused() -> None:
    """Not clamped: istiod refuses, too."""
    with pytest.raises(CertificateError, match="1001 s exceeds svid_max_ttl_seconds 1000"):
        lifetime(1001, 100, 1000)


# --- loading ---------------------------------------------------------------------------------


def test_intermediates_may_be_several(chain: Chain) -> None:
    middle_key = make_key()
    middle = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "middle")]))
        .issuer_name(chain.root.subject)
        .public_key(middle_key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(chain.root_key, hashes.SHA256())
    )
    key = make_key()
    issuing = make_issuing("t", key, middle, middle_key, NOW)
    authority = load_authority([chain.root], [issuing, middle], key, NOW)
    assert authority.intermediates == (middle,)
    assert authority.not_after == NOW + DAY
    with pytest.raises(CertificateError, match="issued by no valid root"):
        load_authority([chain.root], [issuing], key, NOW)
    with pytest.raises(CertificateError, match=r"order issuing-cert\.pem from leaf to root"):
        load_authority([chain.root], [issuing, chain.issuing, middle], key, NOW)


def test_root_in_the_chain_is_harmless(chain: Chain) -> None:
    authority = load_authority([chain.root], [chain.issuing, chain.root], chain.key, NOW)
    assert authority.intermediates == ()


def test_root_may_issue_directly(chain: Chain) -> None:
    authority = load_authority([chain.root], [chain.root], chain.root_key, NOW)
    leaf = sign_workload(authority, make_key().public_key(), IDENTITY, DAY, NOW)
    leaf.verify_directly_issued_by(chain.root)


def test_expired_root_beside_a_valid_one_is_no_longer_handed_out(chain: Chain) -> None:
    old = make_root("mesh.test", make_key(), NOW - timedelta(days=3651))
    authority = load_authority([old, chain.root], [chain.issuing], chain.key, NOW)
    assert authority.roots == (chain.root,)


def test_authority_that_does_not_fit_is_refused(chain: Chain) -> None:
    other = Chain()
    with pytest.raises(CertificateError, match="does not belong to the first certificate"):
        load_authority([chain.root], [chain.issuing], other.key, NOW)
    with pytest.raises(CertificateError, match="issued by no valid root"):
        load_authority([other.root], [chain.issuing], chain.key, NOW)
    with pytest.raises(CertificateError, match="renew it or set the clock"):
        chain.load(NOW + timedelta(days=800))
    with pytest.raises(CertificateError, match="renew it or set the clock"):
        chain.load(NOW - DAY)
    key = make_key()
    leaf = sign_workload(chain.load(), key.public_key(), IDENTITY, DAY, NOW)
    with pytest.raises(CertificateError, match="is not a CA certificate"):
        load_authority([chain.root], [leaf, chain.issuing], key, NOW)


def test_text_that_is_no_certificate_names_its_file() -> None:
    with pytest.raises(CertificateError, match=r"root\.pem: not PEM certificates"):
        parse_certificates(b"hello", "root.pem")
