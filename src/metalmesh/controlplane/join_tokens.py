"""Join tokens on disk: one file per token, used once.

A token is claimed by renaming its file: of two concurrent uses the kernel lets one win. Used
records stay a day for whoever reads the audit log. The files hold hashes, not tokens.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Final

from metalmesh.errors import StoreError, TokenError
from metalmesh.pki.tokens import (
    JoinRecord,
    check_join_token,
    join_token_id,
    make_join_token,
    parse_join_record,
)
from metalmesh.service.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SUFFIX: Final = ".json"
_USED: Final = ".used"
_MODE: Final = 0o600
#: how long a used or expired record is kept
KEEP_SECONDS: Final = 24 * 3600


class JoinTokens:
    """The join tokens below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, node: str, now: int, ttl_seconds: int) -> str:
        """Mint a token for ``node``; return it. It is not stored and cannot be shown again."""
        token, record = make_join_token(
            secrets.token_hex(8), secrets.token_urlsafe(32), node, now, ttl_seconds
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            path = self._directory / f"{record.id}{_SUFFIX}"
            write_atomic(path, json.dumps(record.to_dict()).encode(), _MODE)
        except OSError as error:
            raise StoreError(f"{self._directory}: cannot write a token: {error}") from error
        return token

    def list_unused(self) -> list[JoinRecord]:
        """Every token that has not been used, expired ones too, oldest first."""
        records = [self._read(path) for path in self._files(_SUFFIX)]
        return sorted(records, key=lambda record: (record.created_at, record.id))

    def revoke(self, token_id: str) -> None:
        """Remove a token before its use."""
        join_token_id(f"{token_id}.x")  # refuses anything that is not an id
        try:
            (self._directory / f"{token_id}{_SUFFIX}").unlink()
        except FileNotFoundError as error:
            raise TokenError(f"no unused join token {token_id} in {self._directory}") from error

    def redeem(self, token: str, node: str, now: int) -> JoinRecord:
        """Use up ``token`` for ``node``; raise :class:`TokenError` when it may not be used."""
        token_id = join_token_id(token)
        path = self._directory / f"{token_id}{_SUFFIX}"
        used = self._directory / f"{token_id}{_USED}"
        if used.exists():
            raise TokenError(f"join token {token_id} was used already")
        try:
            record = self._read(path)
        except FileNotFoundError as error:
            raise TokenError(f"join token {token_id} is unknown") from error
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        check_join_token(token, record, node, now)
        try:
            path.rename(used)
        except FileNotFoundError as error:
            raise TokenError(f"join token {token_id} was used by somebody else just now") from error
        except OSError as error:
            raise StoreError(f"{path}: cannot be used up: {error.strerror}") from error
        return record

    def sweep(self, now: int) -> int:
        """Remove records that are used or expired for a day; return how many."""
        removed = 0
        for suffix in (_SUFFIX, _USED):
            for path in self._files(suffix):
                if self._read(path).expires_at + KEEP_SECONDS < now:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def _files(self, suffix: str) -> Iterator[Path]:
        if not self._directory.is_dir():
            return iter(())
        names = (path for path in self._directory.iterdir() if not path.name.startswith("."))
        return iter(sorted(path for path in names if path.suffix == suffix))

    @staticmethod
    def _read(path: Path) -> JoinRecord:
        try:
            return parse_join_record(json.loads(path.read_bytes()), str(path))
        except ValueError as error:
            raise TokenError(f"{path}: not JSON ({error}); remove the file") from error
