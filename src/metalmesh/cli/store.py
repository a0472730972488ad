"""The control plane's store on this machine, for verbs that read and change it."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from metalmesh.cli.admin import fetch
from metalmesh.cli.resources import DEFAULT_CONFIG, read_config
from metalmesh.controlplane.compute import compute
from metalmesh.controlplane.edits import Change, judge
from metalmesh.controlplane.state import StateDirectory
from metalmesh.controlplane.store import DirectoryStore
from metalmesh.errors import MetalmeshError, StoreError
from metalmesh.service.files import write_atomic

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from metalmesh.controlplane.admission import Scan

_MODE: Final = 0o644


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every verb on the store."""
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="of the control plane; %(default)s"
    )


class Store:
    """The store that a configuration names."""

    def __init__(self, config: Path) -> None:
        self.config = read_config(config)
        self._reader = DirectoryStore(self.config.store_dir)

    def scan(self) -> Scan:
        """What is there now."""
        return self._reader.scan()

    def status(self) -> dict[str, dict[str, Any]]:
        """Object id to what the control plane says of it; empty while it does not run."""
        try:
            text = fetch(self.config.metrics_port, "/debug/resources", "metalmesh-controlplane")
        except MetalmeshError:
            return {}
        return {item["object"]: item for item in json.loads(text)["objects"]}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the store in the block; Ansible's module takes the same lock."""
        try:
            descriptor = os.open(self.config.store_dir, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StoreError(f"{self.config.store_dir}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def check(self, scan: Scan, changes: list[Change]) -> list[str]:
        """Refuse changes that would not be in force; what is to be said about the others."""
        previous, _ = StateDirectory(self.config.state_dir).load_objects()
        admission = judge(scan, changes, previous, datetime.now(UTC).isoformat())
        paths = {change.path for change in changes}
        errors = [str(error) for error in admission.errors if error.source in paths]
        if errors:
            raise MetalmeshError("nothing was changed:\n" + "\n".join(errors))
        conditions = compute(admission.objects, self.config.compute_options).conditions
        return [
            f"{change.id}: {condition.reason}: {condition.message}"
            for change in changes
            for condition in conditions.get(change.id, ())
            if change.data is not None and (not condition.status or condition.reason != "Accepted")
        ]

    def write(self, changes: list[Change]) -> None:
        """Carry changes out; every file is written whole or not at all."""
        for change in changes:
            path = self.config.store_dir / change.path
            try:
                if change.data is None:
                    path.unlink()
                    self._remove_empty(path.parent)
                elif change.verb != "unchanged":
                    self._write(path, change.data)
            except OSError as error:
                raise StoreError(f"{path}: cannot be written: {error.strerror}") from error

    def _write(self, path: Path, data: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(data, sort_keys=False, default_flow_style=False, allow_unicode=True)
        write_atomic(path, (_header(path) + text).encode(), _MODE)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.config.store_dir and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _header(path: Path) -> str:
    """Whose file it is stays as it was: Ansible prunes what it owns."""
    try:
        first = path.read_text().partition("\n")[0]
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    return f"{first}\n" if first.startswith("# Managed by Ansible, owner: ") else ""
