"""Nodes whose tokens are no longer believed: for a machine that is lost or was broken into.

A revocation holds for every token issued until then; a node that joins again is welcome. The file
is written by ``metalmesh token revoke-node`` and read by the running control plane.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import StoreError, TokenError
from metalmesh.pki.tokens import check_node_name
from metalmesh.service.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from metalmesh.pki.tokens import NodeToken

#: beside the join tokens, whose files end in .json
FILE_NAME: Final = "revoked-nodes"
_MODE: Final = 0o600


class Revocations:
    """Node name to the unix second until which its tokens are void."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._signature: tuple[int, ...] | None = None
        self._until: dict[str, int] = {}

    def revoke(self, node: str, now: int) -> None:
        """Void every token that ``node`` has."""
        until = {**self._read(), check_node_name(node): now}
        try:
            write_atomic(self._path, json.dumps(until, sort_keys=True).encode(), _MODE)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be written: {error}") from error

    def check(self, token: NodeToken) -> None:
        """Raise :class:`TokenError` when the token was revoked, or when nobody can tell."""
        try:
            until = self._read()
        except StoreError as error:
            raise TokenError(
                f"revocations cannot be read, so no token is believed: {error}"
            ) from error
        if token.issued_at <= until.get(token.node, -1):
            raise TokenError(f"tokens of node {token.node} were revoked; join again")

    def _read(self) -> dict[str, int]:
        """The file's content, read again only when it changed."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from error
        signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if signature != self._signature:
            try:
                self._until = _parse(json.loads(self._path.read_bytes()))
            except (OSError, ValueError) as error:
                raise StoreError(f"{self._path}: {error}; restore it") from error
            self._signature = signature
        return self._until


def _parse(data: Any) -> dict[str, int]:
    if not isinstance(data, dict) or not all(type(value) is int for value in data.values()):
        raise ValueError("not a mapping of node names to seconds")
    return data
