"""The mesh's certificate authority: roots, issuing certificates and what it signs.

Workload certificates are X509-SVIDs (SPIFFE X509-SVID §2 to §4): exactly one URI SAN, critical
because the subject is empty, never a CA, digitalSignature, server and client authentication.
Nothing of a signing request is believed but its public key. ``now`` is an aware UTC instant.
"""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from metalmesh.constants import SVID_BACKDATE_SECONDS
from metalmesh.errors import CertificateError
from metalmesh.model.identity import SignedBy
from metalmesh.pki.keys import SigningKey, check_public_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPublicKeyTypes,
        CertificatePublicKeyTypes,
    )

    from metalmesh.model.identity import SpiffeId

ROOT_TTL: Final = timedelta(days=3650)
ISSUING_TTL: Final = timedelta(days=730)
#: clocks of machines differ a little: everything is valid from two minutes ago
BACKDATE: Final = timedelta(seconds=SVID_BACKDATE_SECONDS)
#: an ECDSA request has about 500 bytes, an RSA-4096 one 1.7 KiB
CSR_MAX_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """An issuing certificate with its key; :func:`load_authority` has checked that they fit."""

    issuing: x509.Certificate
    key: SigningKey
    #: certificates between the issuing one and the root, excluding both
    intermediates: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]

    @property
    def not_after(self) -> datetime:
        """When the first certificate of the chain expires."""
        return min(cert.not_valid_after_utc for cert in (self.issuing, *self.intermediates))

    @property
    def identity(self) -> SignedBy:
        """By what its certificates are known."""
        return SignedBy(frozenset(map(fingerprint, self.roots)), fingerprint(self.issuing))

    def chain_pems(self, leaf: x509.Certificate) -> list[str]:
        """Leaf first, one certificate per element, the last element all roots (istio-facts 4)."""
        chain = (leaf, self.issuing, *self.intermediates)
        return [*map(certificate_to_pem, chain), self.roots_pem]

    @property
    def roots_pem(self) -> str:
        """All trusted roots, concatenated."""
        return "".join(map(certificate_to_pem, self.roots))


# --- making authorities ----------------------------------------------------------------------


def make_root(trust_domain: str, key: SigningKey, now: datetime) -> x509.Certificate:
    """A self-signed root, valid for ten years."""
    name = _authority_name(trust_domain, "root")
    builder = _authority_builder(name, name, key.public_key(), ROOT_TTL, now, path_length=None)
    return builder.sign(key, hashes.SHA256())


def make_issuing(
    trust_domain: str,
    key: SigningKey,
    root: x509.Certificate,
    root_key: SigningKey,
    now: datetime,
) -> x509.Certificate:
    """An issuing intermediate, valid for two years and never longer than its root."""
    if root.not_valid_after_utc <= now:
        raise CertificateError(
            f"root certificate expired at {root.not_valid_after_utc}; make a new root first"
        )
    ttl = min(ISSUING_TTL, root.not_valid_after_utc - now)
    subject = _authority_name(trust_domain, "issuing")
    builder = _authority_builder(subject, root.subject, key.public_key(), ttl, now, path_length=0)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return builder.sign(root_key, hashes.SHA256())


def _authority_name(trust_domain: str, role: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain),
            x509.NameAttribute(NameOID.COMMON_NAME, f"metalmesh {role}"),
        ]
    )


def _authority_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificateIssuerPublicKeyTypes,
    ttl: timedelta,
    now: datetime,
    *,
    path_length: int | None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + ttl)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    """An authority signs certificates and CRLs, a leaf signs handshakes: nothing else."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# --- loading ---------------------------------------------------------------------------------


def parse_certificates(pem: bytes, source: str) -> tuple[x509.Certificate, ...]:
    """Read one or more PEM certificates."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise CertificateError(f"{source}: not PEM certificates ({error})") from error


def load_authority(
    roots: Sequence[x509.Certificate],
    chain: Sequence[x509.Certificate],
    key: SigningKey,
    now: datetime,
) -> CertificateAuthority:
    """Put an authority together: ``chain`` starts with the issuing certificate.

    Refused: a key of another certificate, a certificate that may not issue, a chain that does not
    end in one of the roots, anything expired. An expired root is no longer handed out.
    """
    issuing = chain[0]
    if _spki(issuing.public_key()) != _spki(key.public_key()):
        raise CertificateError(
            "issuing-key.pem does not belong to the first certificate of issuing-cert.pem; "
            "put the matching pair there"
        )
    trusted = tuple(root for root in roots if now < root.not_valid_after_utc)
    links = [cert for cert in chain if cert not in trusted]
    for cert in (*links, *trusted):
        _check_authority(cert, now)
    if not links:  # a root that issues directly: allowed, as with Istio's self-signed CA
        return CertificateAuthority(issuing, key, (), trusted)
    for child, parent in itertools.pairwise(links):
        _check_issued(child, parent)
    if not any(is_issued(links[-1], root) for root in trusted):
        raise CertificateError(
            f"certificate {links[-1].subject.rfc4514_string()!r} was issued by no valid root of "
            "root-cert.pem; append the missing intermediate to issuing-cert.pem or the root "
            "to root-cert.pem"
        )
    return CertificateAuthority(issuing, key, tuple(links[1:]), trusted)


def _check_authority(cert: x509.Certificate, now: datetime) -> None:
    name = cert.subject.rfc4514_string()
    if not cert.not_valid_before_utc <= now < cert.not_valid_after_utc:
        raise CertificateError(
            f"certificate {name!r} is valid from {cert.not_valid_before_utc} to "
            f"{cert.not_valid_after_utc}, not at {now}; renew it or set the clock"
        )
    try:
        constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise CertificateError(f"certificate {name!r} has no basicConstraints") from error
    if not constraints.ca:
        raise CertificateError(f"certificate {name!r} is not a CA certificate")


def _check_issued(child: x509.Certificate, parent: x509.Certificate) -> None:
    if not is_issued(child, parent):
        raise CertificateError(
            f"certificate {child.subject.rfc4514_string()!r} was not issued by "
            f"{parent.subject.rfc4514_string()!r}; order issuing-cert.pem from leaf to root"
        )


def is_issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    """Whether ``parent`` signed ``child``."""
    try:
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


# --- signing ---------------------------------------------------------------------------------


def read_request(csr_pem: str) -> CertificatePublicKeyTypes:
    """The public key of a signing request that proves possession of its private key.

    Subject, SANs and extensions of the request are ignored on purpose.
    """
    if len(csr_pem) > CSR_MAX_BYTES:
        raise CertificateError(f"signing request exceeds {CSR_MAX_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CertificateError(f"signing request cannot be parsed ({error})") from error
    if not valid:
        raise CertificateError("signing request is not signed by its own key")
    check_public_key(key, "signing request")
    return key


def lifetime(requested_seconds: int, default_seconds: int, maximum_seconds: int) -> timedelta:
    """How long a certificate may live: 0 or less asks for the default (istio-facts 4, rule 4)."""
    seconds = requested_seconds if requested_seconds > 0 else default_seconds
    if seconds > maximum_seconds:
        raise CertificateError(
            f"requested lifetime of {seconds} s exceeds svid_max_ttl_seconds {maximum_seconds}"
        )
    return timedelta(seconds=seconds)


def sign_workload(
    authority: CertificateAuthority,
    key: CertificatePublicKeyTypes,
    identity: SpiffeId,
    ttl: timedelta,
    now: datetime,
) -> x509.Certificate:
    """Sign the certificate of one workload identity."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    return _sign_leaf(authority, key, names, ttl, now)


def sign_server(
    authority: CertificateAuthority,
    key: CertificatePublicKeyTypes,
    server_names: Sequence[str],
    ttl: timedelta,
    now: datetime,
) -> x509.Certificate:
    """Sign the control plane's own serving certificate for DNS names and addresses."""
    if not server_names:
        raise CertificateError("server_names is empty; name what nodes dial")
    names = x509.SubjectAlternativeName([_general_name(name) for name in server_names])
    return _sign_leaf(authority, key, names, ttl, now)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _sign_leaf(
    authority: CertificateAuthority,
    key: CertificatePublicKeyTypes,
    names: x509.SubjectAlternativeName,
    ttl: timedelta,
    now: datetime,
) -> x509.Certificate:
    if now >= authority.not_after:
        raise CertificateError(
            f"issuing certificate expired at {authority.not_after}; run metalmesh ca renew"
        )
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_key = authority.issuing.public_key()
    assert not isinstance(issuer_key, bytes)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.issuing.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(min(now + ttl, authority.not_after))
        .add_extension(names, critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def fingerprint(cert: x509.Certificate) -> bytes:
    """SHA-256 of a certificate."""
    return cert.fingerprint(hashes.SHA256())


def certificate_to_pem(cert: x509.Certificate) -> str:
    """PEM text of one certificate."""
    return cert.public_bytes(serialization.Encoding.PEM).decode("ascii")
