"""The CA's ``crl.pem``: what ``metalmesh ca revoke`` writes and nodes are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metalmesh.controlplane.ca_files import read_certificates
from metalmesh.errors import CertificateError
from metalmesh.pki import crl as lists
from metalmesh.pki.keys import parse_key
from metalmesh.service.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from metalmesh.controlplane.ca_files import CaPaths

_MODE = 0o644


def write_crl(
    paths: CaPaths, serials: Iterable[int], now: datetime, *, by_root: bool
) -> tuple[bool, list[lists.Crl]]:
    """Revoke more certificates; whether any is new, and the lists as they are now."""
    cert_path, key_path = paths.issuing_cert, paths.issuing_key
    if by_root:
        cert_path, key_path = paths.root_cert, paths.root_key
    try:
        key = parse_key(key_path.read_bytes(), str(key_path))
        before = paths.crl.read_bytes() if paths.crl.exists() else b""
    except OSError as error:
        raise CertificateError(
            f"{error.filename}: {error.strerror}; revoke where the CA's key is, as its owner"
        ) from error
    for issuer in read_certificates(cert_path):
        if issuer.public_key() == key.public_key():
            break
    else:
        raise CertificateError(f"{key_path} belongs to no certificate of {cert_path}")
    old = lists.parse_crls(before, str(paths.crl))
    new = lists.revoke(old, issuer, key, serials, now)
    write_atomic(paths.crl, lists.crls_to_pem(new), _MODE)
    return lists.revoked_keys(new) != lists.revoked_keys(old), new


def describe_crls(crls: Iterable[lists.Crl]) -> list[dict[str, str]]:
    """Every entry of the lists."""
    return [
        {
            "serial": f"{entry.serial_number:x}",
            "issuer": crl.issuer.rfc4514_string(),
            "revoked_at": entry.revocation_date_utc.isoformat(),
        }
        for crl in crls
        for entry in crl
    ]
