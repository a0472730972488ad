"""The record of issued certificates."""

from __future__ import annotations

from pathlib import Path

from metalmesh.controlplane.issued import FILE_NAME, IssuedCertificates

IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"


def test_record_outlives_the_process_and_forgets_what_expired(tmp_path: Path) -> None:
    first = IssuedCertificates(tmp_path)
    for serial, not_after in ((1, 100), (2, 200), (3, 300)):
        first.add(serial, IDENTITY, "node1", not_after)
    first.add(4, "spiffe://cluster.local/ns/shop/sa/other", "node1", 300)
    second = IssuedCertificates(tmp_path)
    assert second.of_identity(IDENTITY, 150) == [2, 3]
    second.sweep(250)
    assert len((tmp_path / FILE_NAME).read_text().splitlines()) == 2
    assert second.of_identity(IDENTITY, 0) == [3]


def test_cut_line_hides_no_other(tmp_path: Path) -> None:
    record = IssuedCertificates(tmp_path)
    record.add(1, IDENTITY, "node1", 100)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"serial": "2", "iden\n[]\n{"serial": 3}\n')
    record.add(5, IDENTITY, "node1", 100)
    assert record.of_identity(IDENTITY, 0) == [1, 5]


def test_what_cannot_be_recorded_is_issued_all_the_same(tmp_path: Path) -> None:
    record = IssuedCertificates(tmp_path / "missing")
    record.add(1, IDENTITY, "node1", 100)
    assert record.of_identity(IDENTITY, 0) == []
    record.sweep(0)
