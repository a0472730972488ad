"""Key, request and the CA's answer (istio-facts 4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from metalmesh.errors import CertificateError
from metalmesh.pki.csr import KeyAndRequest, make_key_and_request
from metalmesh.pki.svid import parse_svid, split_pem

IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"
START = datetime(2030, 1, 1, tzinfo=UTC)


def sign(
    public_key: ec.EllipticCurvePublicKey, *names: str, signer: ec.EllipticCurvePrivateKey
) -> str:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]))
        .public_key(public_key)
        .serial_number(7)
        .not_valid_before(START)
        .not_valid_after(START + timedelta(hours=24))
    )
    if names:
        uris = [x509.UniformResourceIdentifier(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=True)
    pem = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return pem.decode()


@pytest.fixture(scope="module")
def pair() -> KeyAndRequest:
    return make_key_and_request(IDENTITY)


@pytest.fixture(scope="module")
def authority() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_key(pair: KeyAndRequest) -> ec.EllipticCurvePublicKey:
    key = x509.load_pem_x509_csr(pair.csr_pem.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def test_request_has_one_uri_name_and_no_subject(pair: KeyAndRequest) -> None:
    request = x509.load_pem_x509_csr(pair.csr_pem.encode())
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [IDENTITY]
    assert not list(request.subject)
    assert isinstance(public_key(pair).curve, ec.SECP256R1)
    assert request.is_signature_valid


def test_every_request_has_a_key_of_its_own(pair: KeyAndRequest) -> None:
    assert make_key_and_request(IDENTITY).key_pem != pair.key_pem


def test_keys_do_not_show_in_representations(pair: KeyAndRequest) -> None:
    assert "PRIVATE" not in repr(pair)


def test_answer_is_split_into_chain_and_roots(
    pair: KeyAndRequest, authority: ec.EllipticCurvePrivateKey
) -> None:
    leaf = sign(public_key(pair), IDENTITY, signer=authority)
    issuing = sign(authority.public_key(), signer=authority)
    roots = issuing + sign(authority.public_key(), signer=authority)
    svid = parse_svid(IDENTITY, pair.key_pem, [leaf.strip(), issuing, roots])
    assert split_pem(svid.chain_pem) == [leaf, issuing]
    assert svid.roots_pem == roots
    assert svid.not_after - svid.not_before == 24 * 3600
    assert svid.rotate_at == START.timestamp() + 12 * 3600
    assert "PRIVATE" not in repr(svid)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(("spiffe://cluster.local/ns/shop/sa/other",), "sa/other", id="other"),
        pytest.param((IDENTITY, "spiffe://x/ns/y/sa/z"), "spiffe://x", id="one more"),
        pytest.param((), "for nobody", id="none"),
    ],
)
def test_certificate_for_anybody_else_is_refused(
    pair: KeyAndRequest,
    authority: ec.EllipticCurvePrivateKey,
    names: tuple[str, ...],
    message: str,
) -> None:
    leaf = sign(public_key(pair), *names, signer=authority)
    with pytest.raises(CertificateError, match=message):
        parse_svid(IDENTITY, pair.key_pem, [leaf, leaf])


def test_certificate_for_another_key_is_refused(
    pair: KeyAndRequest, authority: ec.EllipticCurvePrivateKey
) -> None:
    leaf = sign(authority.public_key(), IDENTITY, signer=authority)
    with pytest.raises(CertificateError, match="another key"):
        parse_svid(IDENTITY, pair.key_pem, [leaf, leaf])


@pytest.mark.parametrize("chain", [[], ["x"], ["x", "y"]], ids=["empty", "no roots", "no PEM"])
def test_malformed_answers_name_the_identity(pair: KeyAndRequest, chain: list[str]) -> None:
    with pytest.raises(CertificateError, match=IDENTITY):
        parse_svid(IDENTITY, pair.key_pem, chain)
