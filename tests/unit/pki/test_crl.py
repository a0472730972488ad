"""Revocation lists, and the keys by which workers know what is on them."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import CertificateError
from metalmesh.pki import crl
from metalmesh.pki.ca import make_issuing, make_root
from metalmesh.pki.der import certificate_key, revocation_key
from metalmesh.pki.keys import make_key

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ROOT_KEY, KEY, OTHER_KEY = make_key(), make_key(), make_key()
ROOT = make_root("mesh.test", ROOT_KEY, NOW)
ISSUING = make_issuing("mesh.test", KEY, ROOT, ROOT_KEY, NOW)
OTHER = make_issuing("mesh.test", OTHER_KEY, ROOT, ROOT_KEY, NOW)
DER = ISSUING.public_bytes(serialization.Encoding.DER)


def _certificate(serial: int) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ISSUING.subject)
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(KEY, hashes.SHA256())
    )


@pytest.mark.parametrize("serial", [1, 127, 128, 255, 256, 1 << 63, (1 << 159) - 1])
def test_certificate_on_a_list_is_recognized_from_its_bytes(serial: int) -> None:
    der = _certificate(serial).public_bytes(serialization.Encoding.DER)
    lists = crl.revoke([], ISSUING, KEY, [serial], NOW)
    assert certificate_key(der) in crl.revoked_keys(lists)
    assert certificate_key(DER) not in crl.revoked_keys(lists)


def test_same_serial_of_another_issuer_is_another_certificate() -> None:
    assert revocation_key(ISSUING.subject.public_bytes(), 5) != revocation_key(
        ROOT.subject.public_bytes(), 5
    )


@given(st.binary(max_size=200) | st.integers(0, len(DER)).map(lambda size: DER[:size]))
def test_anything_else_is_no_certificate(data: bytes) -> None:
    with contextlib.suppress(CertificateError):
        certificate_key(data)


@given(st.integers(0, len(DER) - 1), st.integers(0, 255))
def test_damaged_certificate_never_crashes(position: int, value: int) -> None:
    damaged = bytearray(DER)
    damaged[position] = value
    with contextlib.suppress(CertificateError):
        certificate_key(bytes(damaged))


def test_file_may_hold_many_pem_lists_or_one_der() -> None:
    by_issuing = crl.revoke([], ISSUING, KEY, [1], NOW)
    by_root = crl.revoke([], ROOT, ROOT_KEY, [2], NOW)
    pem = crl.crls_to_pem([*by_issuing, *by_root])
    der = by_root[0].public_bytes(serialization.Encoding.DER)
    assert len(crl.revoked_keys(crl.parse_crls(b"# a comment\n" + pem, "f"))) == 2
    assert crl.revoked_keys(crl.parse_crls(der, "f")) == crl.revoked_keys(by_root)
    assert crl.parse_crls(b"\n", "f") == []


@pytest.mark.parametrize(
    "data", [b"x", DER, b"-----BEGIN X509 CRL-----\nx\n-----END X509 CRL-----"]
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(CertificateError, match="f: not a PEM or DER revocation list"):
        crl.parse_crls(data, "f")


def test_revoking_again_changes_nothing_and_keeps_the_date() -> None:
    first = crl.revoke([], ISSUING, KEY, [1], NOW)
    later = NOW + timedelta(days=1)
    second = crl.revoke(first, ISSUING, KEY, [1, 2], later)
    assert {entry.serial_number: entry.revocation_date_utc for entry in second[0]} == {
        1: NOW,
        2: later,
    }
    number = second[0].extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert (len(second), number) == (1, 2)
    assert second[0].is_signature_valid(ISSUING.public_key())
    assert second[0].next_update_utc == ISSUING.not_valid_after_utc


def test_list_of_a_former_key_stays_until_it_is_out_of_date() -> None:
    """Both authorities have one name, as after a rotation; each list has its own signature."""
    old = crl.revoke([], OTHER, OTHER_KEY, [1], NOW)
    both = crl.revoke(old, ISSUING, KEY, [2], NOW)
    assert both[1] == old[0]
    assert len(crl.revoked_keys(both)) == 2
    end = OTHER.not_valid_after_utc
    assert crl.outdated(both, end) == ["CN=metalmesh issuing,O=mesh.test"] * 2
    assert len(crl.revoke(both, ISSUING, KEY, [], end)) == 1


def test_entries_are_forgotten_when_nobody_can_have_the_certificate() -> None:
    first = crl.revoke([], ISSUING, KEY, [1], NOW)
    assert not list(crl.revoke(first, ISSUING, KEY, [], NOW + crl.FORGET_AFTER)[0])


@pytest.mark.parametrize("text", ["0a:FF", "0x0aff", "aff", " AFF "])
def test_serial_numbers_are_read_as_tools_print_them(text: str) -> None:
    assert crl.parse_serial(text) == 0xAFF


@pytest.mark.parametrize("text", ["", "0", "xyz", "-1", "1" * 41])
def test_other_serial_numbers_are_refused(text: str) -> None:
    with pytest.raises(CertificateError, match="is not hexadecimal"):
        crl.parse_serial(text)
