"""What a certificate is known by to a revocation list, read from its DER; no ``cryptography``.

A data worker compares peers' certificates with what main has read of the CRL: issuer and serial
number, hashed to a short key. Bytes are compared as they are in the certificate (RFC 5280 7.1).
"""

from __future__ import annotations

import hashlib
from typing import Final

from metalmesh.errors import CertificateError

_SEQUENCE: Final = 0x30
_INTEGER: Final = 0x02
_VERSION: Final = 0xA0
_KEY_BYTES: Final = 16


def revocation_key(issuer: bytes, serial: int) -> str:
    """The key of an issuer's name (DER) and a serial number."""
    return _key(issuer, serial.to_bytes(serial.bit_length() // 8 + 1, "big"))


def certificate_key(der: bytes) -> str:
    """The key of a certificate; :class:`CertificateError` if it is none."""
    try:
        _, start, _ = _element(der, 0, _SEQUENCE)  # Certificate
        _, at, _ = _element(der, start, _SEQUENCE)  # TBSCertificate
        if der[at] == _VERSION:
            at = _element(der, at, _VERSION)[2]
        _, first, at = _element(der, at, _INTEGER)
        serial = der[first:at]
        at = _element(der, at, _SEQUENCE)[2]  # signature algorithm
        start, _, end = _element(der, at, _SEQUENCE)
    except (IndexError, ValueError) as error:
        raise CertificateError(f"certificate is not DER: {error}") from error
    return _key(der[start:end], serial)


def _key(issuer: bytes, serial: bytes) -> str:
    return hashlib.sha256(serial + issuer).digest()[:_KEY_BYTES].hex()


def _element(der: bytes, at: int, tag: int) -> tuple[int, int, int]:
    """Where an element, its content and what follows it begin."""
    if der[at] != tag:
        raise ValueError(f"tag {der[at]:#x} at {at}, expected {tag:#x}")
    size, content = der[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(der[content : content + count], "big")
        content += count
    end = content + size
    if end > len(der):
        raise ValueError(f"element at {at} ends at {end}, after the {len(der)} bytes")
    return at, content, end
