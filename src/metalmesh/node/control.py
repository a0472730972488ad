"""The agent's unix socket: an application that stops has its proxies told first.

One line of JSON each way, from root only: ``{"verb": "look"}`` is answered when everybody knows
what the marks in ``drained`` say, or when it is clear that not everybody can be told in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import ConfigError, MetalmeshError
from metalmesh.node.state import write_file
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from pathlib import Path

    from metalmesh.node.config import NodeConfig
    from metalmesh.node.health import HealthKeeper

#: proxies act on what they have confirmed within one turn of their loops
SETTLE_SECONDS: Final = 0.3
_MODE: Final = 0o600

log = Log("metalmesh.node.control")


def socket_path(run_dir: Path) -> Path:
    """Where the agent listens."""
    return run_dir / "control.sock"


class ControlSocket:
    """Serves the socket."""

    def __init__(self, path: Path, health: HealthKeeper) -> None:
        self._path = path
        self._health = health
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Open it, in the place of one that an agent before left."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))
        self._path.chmod(_MODE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: dict[str, Any]
        try:
            json.loads(await reader.readline())
            self._health.changed()
            answer = {"settled": await self._health.settle()}
        except (MetalmeshError, OSError, ValueError) as error:
            answer = {"settled": False, "error": str(error)}
        with contextlib.suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)


def announce(config: NodeConfig, name: str, *, stopping: bool, timeout_seconds: float) -> str:
    """Say that the application of a workload stops, or runs again; wait until all know.

    Returns what went wrong, "" if nothing did: an application must be able to stop without us.
    """
    if not (config.workloads_dir / f"{name}.yaml").exists():
        raise ConfigError(
            f"{config.workloads_dir}/{name}.yaml does not exist; "
            "`metalmesh node netns list` names the workloads of this node"
        )
    mark = config.run_dir / "drained" / name
    if stopping:
        write_file(mark, b"")
    else:
        mark.unlink(missing_ok=True)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_seconds)
            sock.connect(str(socket_path(config.run_dir)))
            sock.sendall(b'{"verb": "look"}\n')
            answer = json.loads(sock.makefile().readline() or "{}")
    except (OSError, ValueError) as error:
        return f"the node agent cannot be asked: {error}"
    if answer.get("settled"):
        return ""
    return str(answer.get("error") or "not every proxy has confirmed in time")
