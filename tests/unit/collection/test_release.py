"""Release archives: what they are named after and what is in them."""

from __future__ import annotations

import tarfile
from pathlib import Path

from ansible_collections.metalmesh.ambient.plugins.module_utils import _release


def make_tree(root: Path) -> Path:
    package = root / "src/metalmesh"
    package.mkdir(parents=True)
    (root / "pyproject.toml").write_text("[project]\n")
    (package / "__init__.py").write_text("")
    return root


def test_digest_follows_the_content_of_the_source_and_nothing_else(tmp_path: Path) -> None:
    """Caches, byte code and other files do not make a new release."""
    tree = make_tree(tmp_path)
    before = _release.source_digest(str(tree))
    (tree / "src/metalmesh/__pycache__").mkdir()
    (tree / "src/metalmesh/__pycache__/x.pyc").write_text("x")
    (tree / "notes.txt").write_text("x")
    assert _release.source_digest(str(tree)) == before
    (tree / "src/metalmesh/__init__.py").write_text("x = 1\n")
    assert _release.source_digest(str(tree)) != before


def test_release_differs_by_package_python_and_architecture() -> None:
    digests = {
        _release.release_digest(package, python, architecture)
        for package in (b"a", b"b")
        for python in ("3.11", "3.13")
        for architecture in ("x86_64", "aarch64")
    }
    assert len(digests) == 8


def test_both_installers_take_wheels_for_the_node_only() -> None:
    """Never a build on the controller for its own Python."""
    for kind in ("uv", "pip"):
        command = _release.install_commands(
            [kind], kind, "m.whl", "/t", "3.13", "aarch64", "https://index"
        )
        text = " ".join(command)
        assert "--only-binary :all:" in text
        assert "--python-version 3.13" in text
        assert "manylinux_2_28" in text
        assert "aarch64" in text
        assert "--index-url https://index" in text


def test_archive_is_an_environment_for_the_nodes_python(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    (packages / "metalmesh").mkdir(parents=True)
    (packages / "metalmesh/__init__.py").write_text("x = 1\n")
    (packages / "bin").mkdir()
    (packages / "bin/other").write_text("")
    path = tmp_path / "release.tar.gz"
    _release.write_archive(str(path), str(packages), "1.0-abc", "3.13", "/opt/metalmesh")
    with tarfile.open(path) as archive:
        names = set(archive.getnames())
        assert archive.getmember("bin/python3").linkname == "/usr/bin/python3.13"
        launcher = archive.extractfile("bin/metalmesh")
        assert launcher is not None
        assert launcher.read().startswith(b"#!/opt/metalmesh/1.0-abc/bin/python3 -I\n")
    assert "lib/python3.13/site-packages/metalmesh/__init__.py" in names
    assert not {name for name in names if name.endswith("other")}


def test_same_packages_make_the_same_archive(tmp_path: Path) -> None:
    """Times and owners of the controller's files are not part of it."""
    packages = tmp_path / "packages"
    (packages / "metalmesh").mkdir(parents=True)
    file = packages / "metalmesh/__init__.py"
    contents = []
    for text in ("first", "second"):
        file.unlink(missing_ok=True)
        file.write_text("x = 1\n")
        path = tmp_path / f"{text}.tar"
        _release.write_archive(str(path), str(packages), "1", "3.13", "/opt/metalmesh")
        with tarfile.open(path) as archive:
            contents.append([(m.name, m.mode, m.mtime, m.uid, m.size) for m in archive])
    assert contents[0] == contents[1]


def test_version_is_read_from_what_was_installed(tmp_path: Path) -> None:
    (tmp_path / "metalmesh-1.2.3.dist-info").mkdir()
    (tmp_path / "grpcio-9.dist-info").mkdir()
    assert _release.distribution_version(str(tmp_path)) == "1.2.3"
