"""Which certificates the CA has issued and that may still be valid: for revoking an identity's.

One JSON object a line, appended; lines of expired certificates are removed now and then. A line
that cannot be written costs nobody a certificate: its serial number is in the audit log, too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import StoreError
from metalmesh.service.files import write_atomic
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_NAME: Final = "issued.jsonl"
_MODE: Final = 0o600

log = Log("metalmesh.controlplane.ca")


class IssuedCertificates:
    """The record in a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME

    def add(self, serial: int, identity: str, node: str, not_after: int) -> None:
        """Record one; ``not_after`` in unix seconds."""
        row = {"serial": f"{serial:x}", "identity": identity, "node": node, "not_after": not_after}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            log.error("issued certificate not recorded", {"error": str(error), **row})

    def of_identity(self, identity: str, now: int) -> list[int]:
        """Serial numbers of an identity's certificates that have not expired."""
        return [
            int(row["serial"], 16)
            for row in self._rows()
            if row["identity"] == identity and row["not_after"] > now
        ]

    def sweep(self, now: int) -> None:
        """Forget what has expired."""
        rows = list(self._rows())
        valid = [row for row in rows if row["not_after"] > now]
        if len(valid) < len(rows):
            text = "".join(json.dumps(row) + "\n" for row in valid)
            try:
                write_atomic(self._path, text.encode(), _MODE)
            except OSError as error:
                raise StoreError(f"{self._path}: cannot be written: {error}") from error

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read: {error.strerror}") from error
        for line in lines:
            try:
                row = json.loads(line)
                int(row["serial"], 16), row["identity"], int(row["not_after"])
            except (ValueError, KeyError, TypeError):
                continue  # cut by a full disk or a crash
            yield row
