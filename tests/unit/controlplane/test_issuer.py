"""The serving certificate is renewed in time and kept in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from metalmesh.controlplane.ca_files import CaPaths, init_ca, renew_issuing
from metalmesh.controlplane.issuer import SERVING_TTL, Issuer
from metalmesh.controlplane.metrics import ControlPlaneMetrics
from metalmesh.service.metrics import Registry


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer(tmp_path: Path, clock: Clock) -> Issuer:
    init_ca(CaPaths(tmp_path, tmp_path), "mesh.test", clock.now)
    metrics = ControlPlaneMetrics(Registry())
    return Issuer(tmp_path, ["cp1", "10.77.0.10"], 3600, 7200, metrics, clock)


def test_serving_certificate_is_renewed_at_half_of_its_life(issuer: Issuer, clock: Clock) -> None:
    first = issuer.serving
    clock.now += SERVING_TTL / 2 - timedelta(seconds=1)
    issuer.maintain()
    assert issuer.serving is first
    clock.now += timedelta(seconds=1)
    issuer.maintain()
    second = issuer.serving
    assert second.key_pem != first.key_pem
    leaf, issuing = x509.load_pem_x509_certificates(second.chain_pem.encode())
    assert leaf.not_valid_after_utc == clock.now + SERVING_TTL
    leaf.verify_directly_issued_by(issuing)


def test_no_private_key_of_it_is_ever_on_disk(issuer: Issuer, tmp_path: Path) -> None:
    assert all(issuer.serving.key_pem not in path.read_text() for path in tmp_path.iterdir())


def test_renewed_authority_is_taken_over(issuer: Issuer, clock: Clock, tmp_path: Path) -> None:
    before = issuer.serving
    renew_issuing(CaPaths(tmp_path, tmp_path), "mesh.test", clock.now)
    issuer.maintain()
    assert issuer.serving.chain_pem != before.chain_pem
    kept = issuer.serving
    issuer.maintain()
    assert issuer.serving is kept


def test_half_written_pair_is_not_taken_over(issuer: Issuer, clock: Clock, tmp_path: Path) -> None:
    """``ca renew`` writes the key first: between the two files the pair does not fit."""
    before = issuer.serving
    cert = (tmp_path / "issuing-cert.pem").read_bytes()
    renew_issuing(CaPaths(tmp_path, tmp_path), "mesh.test", clock.now)
    new_cert = (tmp_path / "issuing-cert.pem").read_bytes()
    (tmp_path / "issuing-cert.pem").write_bytes(cert)
    issuer.maintain()
    assert issuer.serving is before
    (tmp_path / "issuing-cert.pem").write_bytes(new_cert)
    issuer.maintain()
    assert issuer.serving is not before


def test_expired_authority_stops_renewal_and_not_the_service(
    issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    before = issuer.serving
    clock.now += timedelta(days=731)
    issuer.maintain()
    issuer.maintain()
    assert issuer.serving.key_pem == before.key_pem
    lines = [item for item in caplog.records if item.msg == "serving certificate not renewed"]
    assert len(lines) == 1
