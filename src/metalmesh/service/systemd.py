"""systemd's service protocol (sd_notify(3), sd_listen_fds(3)): readiness, watchdog, fd store.

Without ``NOTIFY_SOCKET`` every notification is a no-op, so that a service also runs by hand.
"""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: first descriptor that systemd passes (SD_LISTEN_FDS_START)
FIRST_FD: Final = 3
#: systemd refuses longer names in FDNAME= (sd_notify(3))
MAX_FD_NAME: Final = 255


class Notifier:
    """Sends notifications of this process to systemd."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        address = self._environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @property
    def enabled(self) -> bool:
        """Whether systemd listens."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """Start-up is complete."""
        self.send({"READY": "1", **({"STATUS": status} if status else {})})

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self.send({"STATUS": text})

    def stopping(self) -> None:
        """The service has begun to stop."""
        self.send({"STOPPING": "1"})

    def watchdog(self) -> None:
        """Still alive."""
        self.send({"WATCHDOG": "1"})

    def store(self, name: str, fds: Sequence[int]) -> None:
        """Put descriptors into the fd store under ``name``; they come back after a restart."""
        self.send({"FDSTORE": "1", "FDNAME": _fd_name(name)}, fds)

    def unstore(self, name: str) -> None:
        """Remove and close every stored descriptor called ``name``."""
        self.send({"FDSTOREREMOVE": "1", "FDNAME": _fd_name(name)})

    def send(self, assignments: Mapping[str, str], fds: Sequence[int] = ()) -> None:
        """Send ``KEY=value`` lines, with descriptors if there are any.

        A missing or vanished manager raises ``OSError``: it is never ignored silently.
        """
        if not self._address:
            return
        text = "\n".join(f"{key}={value}" for key, value in assignments.items())
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendmsg([text.encode()], rights, 0, self._address)

    def watchdog_interval_seconds(self) -> float | None:
        """How often to call :meth:`watchdog`: half of systemd's limit; None when it is off."""
        limit = self._environ.get("WATCHDOG_USEC", "")
        owner = self._environ.get("WATCHDOG_PID", "")
        if not limit.isdigit() or (owner and owner != str(os.getpid())):
            return None
        return int(limit) / 1_000_000 / 2


def received_fds(environ: Mapping[str, str] | None = None) -> list[tuple[str, int]]:
    """Descriptors systemd passed to this process, as (name, fd), in order.

    Every descriptor is made close-on-exec; ``unknown`` stands for a missing name.
    """
    values = os.environ if environ is None else environ
    count = values.get("LISTEN_FDS", "")
    if not count.isdigit() or values.get("LISTEN_PID", "") != str(os.getpid()):
        return []
    fds = list(range(FIRST_FD, FIRST_FD + int(count)))
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's signature
    names = values.get("LISTEN_FDNAMES", "").split(":")
    names += ["unknown"] * (len(fds) - len(names))
    return [(name or "unknown", fd) for name, fd in zip(names, fds, strict=False)]


def _fd_name(name: str) -> str:
    printable = name.isascii() and name.isprintable() and ":" not in name
    if not printable or not 0 < len(name) <= MAX_FD_NAME:
        raise ValueError(
            f"fd store name {name!r} must be 1 to {MAX_FD_NAME} printable ASCII characters "
            "without ':'"
        )
    return name
