"""A new root in three stages: resumable, repeatable, never without an overlap."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from metalmesh.controlplane import ca_rotation
from metalmesh.controlplane.ca_files import CaPaths, init_ca, read_authority, read_certificates
from metalmesh.controlplane.ca_rotation import NEXT_ROOT_KEY, STAGES, rotate_root
from metalmesh.errors import CertificateError
from metalmesh.pki.ca import is_issued

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def paths(tmp_path: Path) -> CaPaths:
    found = CaPaths(tmp_path / "ca", tmp_path / "root")
    init_ca(found, "mesh.test", NOW)
    return found


def _rotate(paths: CaPaths, stage: str) -> set[str]:
    return {path.name for path in rotate_root(paths, stage, "mesh.test", NOW)}


def test_every_stage_overlaps_with_the_one_before(paths: CaPaths) -> None:
    before = read_authority(paths.directory, NOW, {})
    (old,) = before.roots
    assert _rotate(paths, "prepare") == {NEXT_ROOT_KEY, "root-cert.pem"}
    prepared = read_authority(paths.directory, NOW, {})
    assert prepared.issuing == before.issuing
    assert prepared.roots[0] == old
    new = prepared.roots[1]
    assert _rotate(paths, "switch") == {
        "root-key.pem", "root-cert.pem", "issuing-key.pem", "issuing-cert.pem",
    }  # fmt: skip
    switched = read_authority(paths.directory, NOW, {})
    assert switched.roots == (new, old)
    assert is_issued(switched.issuing, new)
    assert not is_issued(switched.issuing, old)
    assert _rotate(paths, "finish") == {"root-cert.pem"}
    finished = read_authority(paths.directory, NOW, {})
    assert (finished.roots, finished.issuing) == ((new,), switched.issuing)


def test_done_stages_are_left_alone(paths: CaPaths) -> None:
    """A play that was interrupted starts from the beginning and goes on where it was."""
    for done in range(1, 3):
        for stage in STAGES[:done]:
            _rotate(paths, stage)
        for stage in STAGES[:done]:
            assert _rotate(paths, stage) == set()
    _rotate(paths, "finish")
    assert _rotate(paths, "finish") == set()


def test_stage_out_of_order_is_refused(paths: CaPaths) -> None:
    with pytest.raises(CertificateError, match="do the stage prepare first"):
        _rotate(paths, "switch")
    _rotate(paths, "prepare")
    with pytest.raises(CertificateError, match="do the stage switch"):
        _rotate(paths, "finish")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("writes", range(4))
def test_interrupted_stage_can_be_repeated(
    paths: CaPaths, stage: str, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever had been written: the CA that is read is whole, and the stage completes."""
    for earlier in STAGES[: STAGES.index(stage)]:
        _rotate(paths, earlier)
    left = [writes]
    real = ca_rotation.write_atomic

    def write(path: Path, data: bytes, mode: int) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(ca_rotation, "write_atomic", write)
        patch.setattr("metalmesh.controlplane.ca_files.write_atomic", write)
        try:
            _rotate(paths, stage)
        except KeyboardInterrupt:
            assert read_certificates(paths.root_cert)
    for again in STAGES[STAGES.index(stage) :]:
        _rotate(paths, again)
    authority = read_authority(paths.directory, NOW, {})
    assert len(authority.roots) == 1
    assert is_issued(authority.issuing, authority.roots[0])
    assert not (paths.root_dir / NEXT_ROOT_KEY).exists()


def test_without_the_roots_key_nothing_is_written(paths: CaPaths) -> None:
    paths.root_key.unlink()
    with pytest.raises(CertificateError, match="rotate where the root's key is"):
        _rotate(paths, "prepare")
    assert len(read_certificates(paths.root_cert)) == 1
    assert not (paths.root_dir / NEXT_ROOT_KEY).exists()
