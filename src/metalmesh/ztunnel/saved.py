"""What is kept on disk across restarts; no secrets.

* the last good state of xDS: workloads, services and policies with their versions, so that a
  restart goes on before (or without) the control plane answering; written at most twice a second;
* the workloads the node agent asked for, so that a restart goes on with the namespaces in
  systemd's fd store before (or without) the agent. Of no use after a reboot, and harmless then.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.errors import ProtocolError
from metalmesh.service.logs import Bare, Log
from metalmesh.zds.messages import AddWorkload

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from metalmesh.xds.delta_client import DeltaClient

FILE_NAME: Final = "xds.pb"
WORKLOADS_FILE: Final = "workloads.json"
WRITE_DELAY_SECONDS: Final = 0.5

#: a workload that is served, and its namespace (device and inode)
SavedWorkload = tuple[AddWorkload, tuple[int, int]]

log = Log("metalmesh.ztunnel.saved")


def workload_to_entry(saved: SavedWorkload) -> tuple[str | int, ...]:
    """The form in which it is written."""
    w, netns_id = saved
    return (w.uid, w.name, w.namespace, w.service_account, *netns_id)


def workload_from_entry(entry: Sequence[str | int]) -> SavedWorkload:
    """The inverse; raises ValueError, TypeError or IndexError."""
    return AddWorkload(*map(str, entry[:4])), (int(entry[4]), int(entry[5]))


class SavedState:
    """The state of xDS: read once, written when told that something changed."""

    def __init__(self, directory: str, client: DeltaClient) -> None:
        self._path = Path(directory) / FILE_NAME
        self._client = client
        self._file = _StateFile(self._path, durable=True)
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None

    def restore(self, data: bytes = b"") -> None:
        """Apply ``data``, or what was saved if anything was; if unreadable, that is a warning."""
        try:
            count = self._client.restore(data or self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("no saved state", {"path": Bare(self._path), "error": str(error)})
            return
        except Exception as error:
            # whatever another version wrote there must not keep this one from starting
            log.exception(f"saved state {self._path} is of no use", error)
            return
        log.info("resumed from saved state", {"path": Bare(self._path), "resources": count})

    def changed(self) -> None:
        """Write soon."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(WRITE_DELAY_SECONDS, self._start)

    def _start(self) -> None:
        """Write in a thread: a slow disk must not hold up answers to the workers."""
        self._timer = None
        if self._writing is not None and not self._writing.done():
            self.changed()
            return
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._file.write, self._client.save())

    async def close(self) -> None:
        """Write a last time."""
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await self._writing
        self._file.write(self._client.save())


class SavedWorkloads:
    """The workloads that are served, with their namespaces (device and inode)."""

    def __init__(self, directory: str) -> None:
        self._path = Path(directory) / WORKLOADS_FILE
        self._file = _StateFile(self._path, durable=False)

    def read(self) -> list[SavedWorkload]:
        """What the last process served; an unreadable file is only a warning."""
        try:
            return [workload_from_entry(entry) for entry in json.loads(self._path.read_bytes())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, IndexError) as error:
            log.warning("no saved workloads", {"path": Bare(self._path), "error": str(error)})
            return []

    def write(self, workloads: Iterable[SavedWorkload]) -> None:
        """Replace what is saved."""
        self._file.write(json.dumps(list(map(workload_to_entry, workloads))).encode())


class _StateFile:
    """A file that is replaced as a whole; failing to is an error line and nothing more.

    The mesh goes on with what is in memory; one line per spell of trouble is enough. A
    ``durable`` file survives a power cut; that costs a wait for the disk.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._failing = False

    def write(self, data: bytes) -> None:
        """Replace the content atomically."""
        temporary = self._path.with_suffix(".new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
            temporary.replace(self._path)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("state not saved", {"path": Bare(self._path), "error": str(error)})
            self._failing = True
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
