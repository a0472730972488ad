# SPDX-License-Identifier: Apache-2.0
# PRIVATE to the collection metalmesh.ambient.

"""The directory that holds the control plane's resources: read, checked, changed under a lock."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from typing import Any, Callable, Iterator

from ansible_collections.metalmesh.ambient.plugins.module_utils import _io
from ansible_collections.metalmesh.ambient.plugins.module_utils._resources import StoreChange

STORE_DIR = "/var/lib/metalmesh/store"
RUNTIME = "/opt/metalmesh/current"


def import_yaml() -> Any:
    """Return PyYAML: of this Python or, on a control-plane node, the one metalmesh came with."""
    try:
        import yaml
    except ImportError:
        sys.path += glob.glob(f"{RUNTIME}/lib/python3.*/site-packages")
        try:
            import yaml
        except ImportError:
            return None
    return yaml


def make_codec(*, required: bool) -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    """Return dump and load; without PyYAML, JSON stands in for a plan that is only shown."""
    yaml = import_yaml()
    if yaml is None and required:
        raise _io.ModuleError(
            "neither PyYAML nor metalmesh is installed on this machine",
            "Run this on the control-plane node, after the role runtime",
        )
    if yaml is None:
        import json

        return lambda value: json.dumps(value, indent=2) + "\n", json.loads

    def dump(value: Any) -> str:
        text = yaml.safe_dump(value, sort_keys=False, default_flow_style=False, allow_unicode=True)
        return str(text)

    def load(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return None

    return dump, load


def read_store(root: str) -> dict[str, str]:
    """Return path below the store -> text, of every file that follows the naming rule."""
    paths = glob.glob(os.path.join(root, "*", "*", "*.yaml"))
    return {os.path.relpath(path, root): _io.read_text(path) for path in sorted(paths)}


@contextmanager
def locked(root: str) -> Iterator[None]:
    """Hold the store's lock; plays write for several nodes at the same time."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def stage(root: str, changes: list[StoreChange], folder: str) -> None:
    """Write into ``folder`` what the store would be after the changes."""
    texts = read_store(root)
    for change in changes:
        texts[change.key.path] = change.after
    for path, text in texts.items():
        if text:
            os.makedirs(os.path.join(folder, os.path.dirname(path)), exist_ok=True)
            _io.write_text(os.path.join(folder, path), text)


def apply(root: str, changes: list[StoreChange]) -> None:
    """Write and remove files; each change is atomic, new objects come before removals."""
    for change in sorted(changes, key=lambda item: not item.after):
        path = os.path.join(root, change.key.path)
        if change.after:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            _io.write_text(path, change.after)
            continue
        _io.remove(path)
        remove_empty(os.path.dirname(path), root)


def remove_empty(folder: str, root: str) -> None:
    """Remove directories that hold nothing any more, up to the store itself."""
    while folder != root and not os.listdir(folder):
        os.rmdir(folder)
        folder = os.path.dirname(folder)


@contextmanager
def staged(root: str, changes: list[StoreChange], tmpdir: str) -> Iterator[str]:
    """Give a copy of the store with the changes made, for a look before anything happens."""
    folder = tempfile.mkdtemp(prefix="metalmesh-store-", dir=tmpdir)
    try:
        stage(root, changes, folder)
        yield folder
    finally:
        shutil.rmtree(folder)


__all__ = ["RUNTIME", "STORE_DIR", "apply", "locked", "make_codec", "read_store", "staged"]
