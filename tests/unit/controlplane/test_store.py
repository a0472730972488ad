"""The directory store: real files, read incrementally."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metalmesh.controlplane.admission import Scan
from metalmesh.controlplane.store import DirectoryStore
from metalmesh.errors import ResourceError

NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def _ids(scan: Scan) -> dict[str, list[str]]:
    return {
        name: [getattr(item, "id", "error") for item in found] for name, found in scan.files.items()
    }


def test_yaml_files_at_every_depth_are_read_and_others_not(store: DirectoryStore) -> None:
    below = store.directory / "Namespace" / "_cluster"
    below.mkdir(parents=True)
    (below / "a.yaml").write_text(NAMESPACE % "a")
    (store.directory / "b.yml").write_text(NAMESPACE % "b")
    for name in ("c.txt", ".d.yaml", "e.yaml~", "f.yaml.swp"):
        (store.directory / name).write_text(NAMESPACE % "x")
    assert _ids(store.scan()) == {
        "Namespace/_cluster/a.yaml": ["Namespace a"],
        "b.yml": ["Namespace b"],
    }
    assert set(store.directories) == {"", "Namespace", "Namespace/_cluster"}


def test_unchanged_files_are_not_parsed_again(store: DirectoryStore) -> None:
    path = store.directory / "a.yaml"
    path.write_text(NAMESPACE % "a")
    (store.directory / "b.yaml").write_text(NAMESPACE % "b")
    first = store.scan()
    replacement = store.directory / ".new"
    replacement.write_text(NAMESPACE % "c")
    replacement.rename(path)
    second = store.scan()
    assert second.files["b.yaml"] is first.files["b.yaml"]
    assert _ids(second)["a.yaml"] == ["Namespace c"]


def test_change_of_equal_size_is_seen(store: DirectoryStore) -> None:
    path = store.directory / "a.yaml"
    path.write_text(NAMESPACE % "a")
    store.scan()
    stat = path.stat()
    path.write_text(NAMESPACE % "b")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _ids(store.scan()) == {"a.yaml": ["Namespace b"]}


def test_removed_files_are_gone(store: DirectoryStore) -> None:
    path = store.directory / "a.yaml"
    path.write_text(NAMESPACE % "a")
    store.scan()
    path.unlink()
    assert store.scan() == Scan({}, {})


def test_missing_store_is_unreadable_and_not_empty(tmp_path: Path) -> None:
    """A lost mount must not delete the mesh."""
    gone = tmp_path / "gone"
    reason = f"the store {gone} cannot be read: No such file or directory"
    assert DirectoryStore(gone).scan().unreadable == {".": reason}


def test_link_in_a_circle_is_unreadable_and_a_dangling_one_is_not_there(
    store: DirectoryStore,
) -> None:
    """A link loop stands for any file whose metadata cannot be had (root may read the rest)."""
    (store.directory / "loop.yaml").symlink_to("loop.yaml")
    (store.directory / "nowhere.yaml").symlink_to("missing")
    scan = store.scan()
    assert list(scan.unreadable) == ["loop.yaml"]
    assert scan.files == {}


def test_file_that_is_not_text_is_an_error_of_that_file(store: DirectoryStore) -> None:
    (store.directory / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (found,) = store.scan().files["a.yaml"]
    assert isinstance(found, ResourceError)
    assert str(found).startswith("a.yaml: not UTF-8")


def test_directory_named_like_a_file_is_walked(store: DirectoryStore) -> None:
    (store.directory / "d.yaml").mkdir()
    (store.directory / "d.yaml" / "a.yaml").write_text(NAMESPACE % "a")
    assert _ids(store.scan()) == {"d.yaml/a.yaml": ["Namespace a"]}
