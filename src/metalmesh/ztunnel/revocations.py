"""Follows the file of revocation lists and tells the workers what is in it.

A file that is missing at the start means that nothing is revoked yet. One that disappears or cannot
be read later changes nothing: who was revoked stays revoked as long as we run.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.errors import CertificateError
from metalmesh.service.files import file_signature
from metalmesh.service.logs import Log
from metalmesh.ztunnel import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.service.metrics import Registry

#: a look at one file costs microseconds; a revoked peer is cut off this much later at most
CHECK_SECONDS: Final = 1.0

log = Log("metalmesh.ztunnel.revocations")


class RevocationKeeper:
    """What the lists at ``path`` say ("": there are none)."""

    def __init__(
        self, path: str, registry: Registry, publish: Callable[[messages.Message], None]
    ) -> None:
        self._path = Path(path) if path else None
        self._publish = publish
        self._signature: tuple[int, ...] | None = None
        self._entries = registry.gauge(
            "metalmesh_ztunnel_crl_entries", "Revoked certificates that the CRL file lists"
        )
        self._failures = registry.counter(
            "metalmesh_ztunnel_crl_read_failures_total", "Failed readings of a changed CRL file"
        )
        self.message = messages.Revocations()

    async def run(self) -> None:
        """Look for changes for ever."""
        while True:
            self.refresh()
            await asyncio.sleep(CHECK_SECONDS)

    def refresh(self) -> None:
        """Read the file if it has changed; tell the workers if what it says has."""
        if self._path is None:
            return
        signature = file_signature(self._path)
        if signature == self._signature:
            return
        first, self._signature = self._signature is None, signature
        try:
            data = self._path.read_bytes()
            keys = _read(data, str(self._path))
        except FileNotFoundError:
            say = log.info if first else log.warning
            say("no CRL file; what was revoked before stays revoked", {"path": str(self._path)})
            return
        except (OSError, CertificateError) as error:
            self._failures.inc()
            log.error("CRL not read; the last good one stays", {"error": str(error)})
            return
        self._entries.set(len(keys))
        if keys != self.message.keys:
            self.message = messages.Revocations(keys=keys)
            self._publish(self.message)
            log.info("CRL read", {"path": str(self._path), "revoked": len(keys)})


def _read(data: bytes, source: str) -> tuple[str, ...]:
    # most meshes never revoke anything
    from datetime import UTC, datetime

    from metalmesh.pki.crl import outdated, parse_crls, revoked_keys

    crls = parse_crls(data, source)
    for issuer in outdated(crls, datetime.now(UTC)):
        log.warning("CRL is out of date; it still counts", {"issuer": issuer})
    return tuple(sorted(revoked_keys(crls)))
