"""The last good state of xDS on disk: what a restart goes on with before the control plane answers.

It holds workloads, services and policies with their versions, no secrets. The file is replaced
atomically and at most twice a second.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.errors import ProtocolError
from metalmesh.service.logs import Bare, Log

if TYPE_CHECKING:
    from metalmesh.xds.delta_client import DeltaClient

FILE_NAME: Final = "xds.pb"
WRITE_DELAY_SECONDS: Final = 0.5

log = Log("metalmesh.ztunnel.saved")


class SavedState:
    """Reads the file once, writes it when told that something changed."""

    def __init__(self, directory: str, client: DeltaClient) -> None:
        self._path = Path(directory) / FILE_NAME
        self._client = client
        self._timer: asyncio.TimerHandle | None = None
        self._failing = False

    def restore(self) -> None:
        """Apply what was saved, if anything was; an unreadable file is only a warning."""
        try:
            count = self._client.restore(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("no saved state", {"path": Bare(self._path), "error": str(error)})
            return
        log.info("resumed from saved state", {"path": Bare(self._path), "resources": count})

    def changed(self) -> None:
        """Write soon."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(WRITE_DELAY_SECONDS, self.write)

    def write(self) -> None:
        """Write now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        temporary = self._path.with_suffix(".new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._client.save())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            self._failing = False
        except OSError as error:
            # the mesh goes on with what is in memory; one line per spell of trouble is enough
            if not self._failing:
                log.error("state not saved", {"path": Bare(self._path), "error": str(error)})
            self._failing = True
            temporary.unlink(missing_ok=True)
