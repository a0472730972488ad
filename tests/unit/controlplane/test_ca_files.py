"""``metalmesh ca init`` makes what is missing and never replaces a key."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from metalmesh.controlplane.ca_files import (
    CaPaths,
    import_ca,
    init_ca,
    plan_init,
    read_authority,
    renew_issuing,
    write_imported,
)
from metalmesh.errors import CertificateError

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def paths(tmp_path: Path) -> CaPaths:
    return CaPaths(tmp_path / "ca", tmp_path / "root")


def test_first_run_makes_everything_and_second_nothing(paths: CaPaths) -> None:
    planned = plan_init(paths)
    assert init_ca(paths, "mesh.test", NOW) == planned
    assert {path.name for path in planned} == {
        "root-cert.pem",
        "root-key.pem",
        "issuing-cert.pem",
        "issuing-key.pem",
    }
    assert init_ca(paths, "mesh.test", NOW) == []
    assert read_authority(paths.directory, NOW, {}).roots[0].subject.rfc4514_string() == (
        "CN=metalmesh root,O=mesh.test"
    )


def test_keys_are_private_and_certificates_public(paths: CaPaths) -> None:
    init_ca(paths, "mesh.test", NOW)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for directory in (paths.directory, paths.root_dir)
        for path in directory.iterdir()
    }
    assert modes == {
        "root-cert.pem": 0o644,
        "issuing-cert.pem": 0o644,
        "root-key.pem": 0o600,
        "issuing-key.pem": 0o600,
    }


def test_roots_key_may_leave_the_machine(paths: CaPaths) -> None:
    init_ca(paths, "mesh.test", NOW)
    paths.root_key.unlink()
    assert init_ca(paths, "mesh.test", NOW) == []
    read_authority(paths.directory, NOW, {})


def test_issuing_pair_is_made_anew_from_an_existing_root(paths: CaPaths) -> None:
    init_ca(paths, "mesh.test", NOW)
    root = paths.root_cert.read_bytes()
    paths.issuing_cert.unlink()
    paths.issuing_key.unlink()
    assert init_ca(paths, "mesh.test", NOW) == [paths.issuing_cert, paths.issuing_key]
    assert paths.root_cert.read_bytes() == root


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("root_key", "issuing_cert", "issuing_key"), "root-key.pem is missing while"),
        (("issuing_key",), "issuing-key.pem is missing while its other half exists"),
        (("root_cert",), "root-cert.pem is missing while"),
        (("root_cert", "root_key"), "exists without its root; restore"),
    ],
)
def test_half_a_pair_is_an_error_and_nothing_is_overwritten(
    paths: CaPaths, gone: tuple[str, ...], message: str
) -> None:
    """A new key in the place of a lost one would break every node."""
    init_ca(paths, "mesh.test", NOW)
    for name in gone:
        getattr(paths, name).unlink()
    if gone == ("issuing_key",):
        before = paths.issuing_cert.read_bytes()
    with pytest.raises(CertificateError, match=message):
        init_ca(paths, "mesh.test", NOW)
    if gone == ("issuing_key",):
        assert paths.issuing_cert.read_bytes() == before


def test_renewal_keeps_the_root(paths: CaPaths) -> None:
    init_ca(paths, "mesh.test", NOW)
    before = read_authority(paths.directory, NOW, {})
    later = NOW + timedelta(days=500)
    renew_issuing(paths, "mesh.test", later)
    after = read_authority(paths.directory, later, {})
    assert after.roots == before.roots
    assert after.issuing != before.issuing
    assert after.not_after == later + timedelta(days=730)


def test_renewal_needs_the_roots_own_key(paths: CaPaths, tmp_path: Path) -> None:
    init_ca(paths, "mesh.test", NOW)
    other = CaPaths(tmp_path / "other", tmp_path / "other")
    init_ca(other, "mesh.test", NOW)
    with pytest.raises(CertificateError, match="does not belong to the first certificate"):
        renew_issuing(CaPaths(paths.directory, other.root_dir), "mesh.test", NOW)


def test_key_may_be_a_credential_of_systemd(paths: CaPaths, tmp_path: Path) -> None:
    init_ca(paths, "mesh.test", NOW)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    paths.issuing_key.rename(credentials / "issuing-key.pem")
    with pytest.raises(CertificateError, match=r"issuing-key\.pem: No such file"):
        read_authority(paths.directory, NOW, {})
    read_authority(paths.directory, NOW, {"CREDENTIALS_DIRECTORY": str(credentials)})


def test_missing_directory_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="make the CA with metalmesh ca init"):
        read_authority(tmp_path / "none", NOW, {})


def _cacerts(directory: Path) -> Path:
    """An intermediate under a foreign root, as Istio's secret ``cacerts`` has it."""
    foreign = CaPaths(directory / "foreign", directory / "foreign")
    init_ca(foreign, "corp.example", NOW)
    source = directory / "cacerts"
    source.mkdir()
    issuing = foreign.issuing_cert.read_bytes()
    root = foreign.root_cert.read_bytes()
    for name, data in (
        ("ca-cert.pem", issuing),
        ("ca-key.pem", foreign.issuing_key.read_bytes()),
        ("cert-chain.pem", issuing + root),
        ("root-cert.pem", root),
    ):
        (source / name).write_bytes(data)
    return source


def test_given_intermediate_is_taken_once(paths: CaPaths, tmp_path: Path) -> None:
    """Istio's plug-in CA: the root's key is nowhere near."""
    source = _cacerts(tmp_path)
    files = import_ca(paths, source, NOW)
    assert len(files) == 3
    write_imported(files)
    authority = read_authority(paths.directory, NOW, {})
    assert authority.issuing.issuer.rfc4514_string() == "CN=metalmesh root,O=corp.example"
    assert import_ca(paths, source, NOW) == {}
    assert stat.S_IMODE(paths.issuing_key.stat().st_mode) == 0o600
    assert plan_init(paths) == []


@pytest.mark.parametrize("chain", ["without its first", "first only"])
def test_chain_of_a_given_intermediate_may_be_written_both_ways(
    paths: CaPaths, tmp_path: Path, chain: str
) -> None:
    source = _cacerts(tmp_path)
    name = "ca-cert.pem" if chain == "first only" else "root-cert.pem"
    (source / "cert-chain.pem").write_bytes((source / name).read_bytes())
    write_imported(import_ca(paths, source, NOW))
    assert read_authority(paths.directory, NOW, {}).intermediates == ()


def test_intermediate_that_does_not_fit_together_is_refused_as_a_whole(
    paths: CaPaths, tmp_path: Path
) -> None:
    source = _cacerts(tmp_path)
    other = CaPaths(tmp_path / "other", tmp_path / "other")
    init_ca(other, "x", NOW)
    for name, replacement, error in (
        ("ca-key.pem", other.issuing_key, "does not belong"),
        ("root-cert.pem", other.root_cert, "issued by no valid root"),
    ):
        kept = (source / name).read_bytes()
        (source / name).write_bytes(replacement.read_bytes())
        with pytest.raises(CertificateError, match=error):
            import_ca(paths, source, NOW)
        (source / name).write_bytes(kept)
    (source / "ca-cert.pem").unlink()
    with pytest.raises(CertificateError, match=r"ca-cert\.pem"):
        import_ca(paths, source, NOW)
    assert not paths.directory.exists()
