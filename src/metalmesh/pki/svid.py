"""A workload's certificate as the CA's answer gives it (istio-facts 4: ztunnel parsing)."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from metalmesh.errors import CertificateError
from metalmesh.model.identity import SignedBy

if TYPE_CHECKING:
    from collections.abc import Sequence

_BODY = re.compile(r"-----BEGIN [A-Z ]+-----(.+?)-----END", re.DOTALL)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Svid:
    """Certificate, key and trust of one identity; times are unix seconds."""

    identity: str
    #: leaf first, then intermediates
    chain_pem: str
    key_pem: str = field(repr=False)
    roots_pem: str
    #: what it was signed with and which roots came with it
    signed_by: SignedBy
    not_before: float
    not_after: float

    @property
    def rotate_at(self) -> float:
        """Half of its life (istio-facts 4: client schedule)."""
        return self.not_before + (self.not_after - self.not_before) / 2


def parse_svid(identity: str, key_pem: str, cert_chain: Sequence[str]) -> Svid:
    """Check a CA's answer: leaf first, roots last, for our key and exactly our identity."""
    if len(cert_chain) < 2:
        raise CertificateError(
            f"CA answer for {identity}: {len(cert_chain)} elements, need a leaf and the roots"
        )
    try:
        leaf = x509.load_pem_x509_certificate(cert_chain[0].encode())
        above = [x509.load_pem_x509_certificates(text.encode()) for text in cert_chain[1:]]
    except ValueError as error:
        raise CertificateError(
            f"CA answer for {identity}: not a PEM certificate: {error}"
        ) from error
    names = uri_names(leaf)
    if names != [identity]:
        raise CertificateError(
            f"CA answer for {identity}: the certificate is for {', '.join(names) or 'nobody'}"
        )
    if _public_bytes(leaf.public_key()) != _public_bytes(
        serialization.load_pem_private_key(key_pem.encode(), None).public_key()
    ):
        raise CertificateError(f"CA answer for {identity}: the certificate is for another key")
    return Svid(
        identity=identity,
        chain_pem="".join(_with_newline(text) for text in cert_chain[:-1]),
        key_pem=key_pem,
        roots_pem=_with_newline(cert_chain[-1]),
        signed_by=_signed_by(above),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def _signed_by(above: Sequence[Sequence[x509.Certificate]]) -> SignedBy:
    """The certificate that signed the leaf is the first above it; the roots are the last."""
    sha = hashes.SHA256()
    roots = frozenset(root.fingerprint(sha) for root in above[-1])
    return SignedBy(roots, above[0][0].fingerprint(sha))


def uri_names(certificate: x509.Certificate) -> list[str]:
    """URI subject alternative names of a certificate."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def split_pem(text: str) -> list[str]:
    """Every certificate of a PEM text, apart."""
    return _PEM.findall(text)


def pem_to_der(text: str) -> bytes:
    """The DER of every PEM block, concatenated."""
    return b"".join(base64.b64decode("".join(body.split())) for body in _BODY.findall(text))


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _with_newline(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
