"""Certificates for tests: a mesh CA, foreign CAs, and leaves that are wrong in one chosen way."""

from __future__ import annotations

import dataclasses
import datetime
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from metalmesh.pki.der import revocation_key

HOUR = datetime.timedelta(hours=1)
USAGES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


@dataclasses.dataclass(frozen=True)
class Credentials:
    """A leaf with its key and the roots to trust, all PEM."""

    chain: bytes
    key: bytes
    roots: bytes

    def revocation_keys(self) -> tuple[str, ...]:
        """What main tells workers of a list with each certificate of the chain, leaf first."""
        certificates = x509.load_pem_x509_certificates(self.chain)
        return tuple(
            revocation_key(cert.issuer.public_bytes(), cert.serial_number) for cert in certificates
        )

    @property
    def serial(self) -> int:
        """Serial number of the leaf."""
        return x509.load_pem_x509_certificate(self.chain).serial_number

    def context(
        self,
        side: int,
        *,
        maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        alpn: Sequence[str] = ("h2",),
        keylog: Path | None = None,
    ) -> ssl.SSLContext:
        """TLS context of a peer (``ssl.PROTOCOL_TLS_CLIENT`` or ``_SERVER``) that asks for mTLS."""
        context = ssl.SSLContext(side)
        context.maximum_version = maximum
        context.check_hostname = False
        context.set_alpn_protocols(list(alpn))
        context.load_verify_locations(cadata=self.roots.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        with tempfile.NamedTemporaryFile(prefix="mm-test-") as both:
            both.write(self.chain + self.key)
            both.flush()
            context.load_cert_chain(both.name)
        if keylog is not None:
            context.keylog_filename = str(keylog)
        return context


class CertificateAuthority:
    """A self-signed root that signs leaves; made anew for every test that needs one."""

    def __init__(self, name: str = "mesh root") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        self._intermediates = b""
        now = datetime.datetime.now(datetime.UTC)
        #: the root certificate, PEM.
        self.root_pem = (
            self._builder(self._name, self._key, now - HOUR, now + HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    @classmethod
    def load(cls, *, root: bytes, chain: bytes, key: bytes) -> CertificateAuthority:
        """The CA of a lab, to sign what the lab's control plane would refuse to sign."""
        found = cls()
        loaded = serialization.load_pem_private_key(key, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        found._key, found.root_pem, found._intermediates = loaded, root, chain
        found._name = x509.load_pem_x509_certificates(chain)[0].subject
        return found

    def intermediate(self) -> CertificateAuthority:
        """An authority below this one, whose leaves carry its certificate in their chain."""
        found = CertificateAuthority.__new__(CertificateAuthority)
        found._key = ec.generate_private_key(ec.SECP256R1())
        found._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "intermediate")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            self._builder(found._name, found._key, now - HOUR, now + HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        found.root_pem = self.root_pem
        found._intermediates = certificate.public_bytes(serialization.Encoding.PEM)
        return found

    def self_signed(self, uri: str) -> Credentials:
        """A leaf that vouches for itself."""
        alone = CertificateAuthority("nobody")
        leaf = alone.leaf(uri, key=alone._key)
        return Credentials(leaf.chain, leaf.key, self.root_pem)

    def leaf(
        self,
        *uris: str,
        valid_for: datetime.timedelta = HOUR,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Credentials:
        """Sign a leaf with these URI SANs; a negative validity makes an expired one."""
        subject = self._name if key is not None else x509.Name([])
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        start = min(now, now + valid_for) - HOUR
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        certificate = (
            self._builder(subject, key, start, now + valid_for)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.ExtendedKeyUsage(USAGES), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Credentials(
            certificate.public_bytes(serialization.Encoding.PEM) + self._intermediates,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            self.root_pem,
        )

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        start: datetime.datetime,
        end: datetime.datetime,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )
