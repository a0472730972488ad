"""Certificate revocation lists: reading any, and keeping that of the mesh's own authority.

The file of the lists is the only record: PEM blocks, one per issuer and key. Revoking re-signs the
block of the present key; blocks of former keys stay until they are out of date. No signature is
checked when lists are read: whoever may write the file decides whom the mesh trusts anyway.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from metalmesh.errors import CertificateError
from metalmesh.pki.der import revocation_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from metalmesh.pki.keys import SigningKey

_PEM: Final = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----\n?", re.DOTALL)
#: no workload's certificate lives longer, so nobody can show one that was revoked before that
FORGET_AFTER: Final = timedelta(days=366)

Crl = x509.CertificateRevocationList


def parse_crls(data: bytes, source: str) -> list[Crl]:
    """Every list of a file: PEM, any number, or DER, one."""
    blocks = _PEM.findall(data)
    try:
        if blocks:
            return [x509.load_pem_x509_crl(block) for block in blocks]
        return [x509.load_der_x509_crl(data)] if data.strip() else []
    except ValueError as error:
        raise CertificateError(f"{source}: not a PEM or DER revocation list ({error})") from error


def revoked_keys(crls: Iterable[Crl]) -> frozenset[str]:
    """Keys (see :mod:`metalmesh.pki.der`) of everything that is revoked."""
    found: set[str] = set()
    for crl in crls:
        issuer = crl.issuer.public_bytes()
        found.update(revocation_key(issuer, entry.serial_number) for entry in crl)
    return frozenset(found)


def outdated(crls: Iterable[Crl], now: datetime) -> list[str]:
    """Issuers whose list says that there should be a newer one; it still counts."""
    return [
        crl.issuer.rfc4514_string()
        for crl in crls
        if crl.next_update_utc is not None and crl.next_update_utc <= now
    ]


def revoke(
    crls: Iterable[Crl],
    issuer: x509.Certificate,
    key: SigningKey,
    serials: Iterable[int],
    now: datetime,
) -> list[Crl]:
    """The lists with ``serials`` in that of ``issuer``, which signs it anew with its ``key``."""
    kept: list[Crl] = []
    entries: dict[int, datetime] = {}
    number = 0
    for crl in crls:
        if crl.issuer == issuer.subject and crl.is_signature_valid(key.public_key()):
            entries |= {entry.serial_number: entry.revocation_date_utc for entry in crl}
            number = max(number, _number(crl))
        elif crl.next_update_utc is None or crl.next_update_utc > now:
            kept.append(crl)
    for serial in serials:
        entries.setdefault(serial, now)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(issuer.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number + 1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    for serial, at in sorted(entries.items()):
        if at > now - FORGET_AFTER:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
            builder = builder.add_revoked_certificate(entry.build())
    return [builder.sign(key, hashes.SHA256()), *kept]


def _number(crl: Crl) -> int:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def crls_to_pem(crls: Iterable[Crl]) -> bytes:
    """The file's content."""
    return b"".join(crl.public_bytes(serialization.Encoding.PEM) for crl in crls)


def parse_serial(text: str) -> int:
    """A serial number in hexadecimal, with or without colons, as openssl and we print it."""
    digits = text.strip().lower().removeprefix("0x").replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{1,40}", digits) or int(digits, 16) == 0:
        raise CertificateError(
            f"serial number {text!r} is not hexadecimal; take it from metalmesh ca show, the audit "
            "log or openssl x509 -serial"
        )
    return int(digits, 16)
