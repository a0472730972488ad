"""Private keys on disk."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from metalmesh.errors import CertificateError
from metalmesh.pki.keys import key_to_pem, make_key, parse_key


def test_key_survives_its_file() -> None:
    key = make_key()
    assert isinstance(key.curve, ec.SECP256R1)
    found = parse_key(key_to_pem(key).encode(), "k.pem")
    assert found.private_numbers() == key.private_numbers()


def _pem(key: object, password: bytes | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


BAD = {
    "text": (lambda: b"hello", "not an unencrypted PEM private key"),
    "encrypted": (lambda: _pem(make_key(), b"secret"), "not an unencrypted PEM private key"),
    "Ed25519": (lambda: _pem(ed25519.Ed25519PrivateKey.generate()), "must be ECDSA or RSA"),
    "short RSA": (lambda: _pem(rsa.generate_private_key(65537, 1024)), "2048 to 8192 bits"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_key_is_refused_naming_the_file_and_never_the_key(case: tuple) -> None:
    pem = case[0]()
    with pytest.raises(CertificateError, match=f"^k.pem: .*{case[1]}") as caught:
        parse_key(pem, "k.pem")
    assert "PRIVATE" not in str(caught.value)
