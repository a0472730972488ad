"""A new key and its signing request, in memory only (istio-facts 4: CSR).

ECDSA P-256 with SHA-256, empty subject, one URI SAN; the key as unencrypted PKCS#8 PEM, which
goes to data workers through a socket and never to a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True, slots=True)
class KeyAndRequest:
    """A private key and the CSR made with it, both PEM."""

    key_pem: str = field(repr=False)
    csr_pem: str


def make_key_and_request(identity_uri: str) -> KeyAndRequest:
    """Make a fresh key and ask for ``identity_uri`` with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity_uri)]),
            critical=True,  # RFC 5280 4.2.1.6: the subject is empty
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return KeyAndRequest(
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        request.public_bytes(pem).decode(),
    )
