"""Private keys: making, writing, reading and judging them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from metalmesh.errors import CertificateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

#: below this RSA is considered broken (NIST SP 800-57 part 1)
RSA_MIN_BITS: Final = 2048
#: verifying a larger RSA signature costs the CA too much for one unauthenticated CSR
RSA_MAX_BITS: Final = 8192
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_key() -> ec.EllipticCurvePrivateKey:
    """A new ECDSA P-256 key, what Istio's ztunnel uses."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: SigningKey) -> str:
    """PKCS #8, without encryption: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")


def parse_key(pem: bytes, source: str) -> SigningKey:
    """Read an unencrypted private key; the error never shows the key."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"{source}: not an unencrypted PEM private key ({type(error).__name__})"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CertificateError(f"{source}: the key must be ECDSA or RSA")
    check_public_key(key.public_key(), source)
    return key


def check_public_key(key: PublicKeyTypes, what: str) -> None:
    """Refuse key types and sizes that are weak, exotic or expensive."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, _CURVES):
            raise CertificateError(
                f"{what}: curve {key.curve.name} is not accepted; use P-256, P-384 or P-521"
            )
        return
    if isinstance(key, rsa.RSAPublicKey):
        if not RSA_MIN_BITS <= key.key_size <= RSA_MAX_BITS:
            raise CertificateError(
                f"{what}: an RSA key has {RSA_MIN_BITS} to {RSA_MAX_BITS} bits, got {key.key_size}"
            )
        return
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise CertificateError(f"{what}: the key must be ECDSA, RSA or Ed25519")
