"""systemd as a ztunnel sees it: the manager's end of notify and of the fd store."""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import threading
from pathlib import Path


class Systemd:
    """The manager's end of notify and of the fd store."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        #: (name, descriptor) in order of arrival.
        self.stored: list[tuple[str, int]] = []
        #: of the last process that took over.
        self.main_pid = 0
        #: assignments received, latest last.
        self.heard: list[str] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(64))
            lines = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "END" in lines:
                return
            fds = array.array("i")
            for _, _, payload in ancillary:
                fds.frombytes(payload)
            name = lines.get("FDNAME", "")
            if "FDSTORE" in lines:
                self.stored += [(name, fd) for fd in fds]
            elif "FDSTOREREMOVE" in lines:
                for entry in [item for item in self.stored if item[0] == name]:
                    self.stored.remove(entry)
                    os.close(entry[1])
            else:
                self.heard.append(data.decode())
            if "MAINPID" in lines:
                self.main_pid = int(lines["MAINPID"])

    def close(self) -> None:
        """Stop listening; close what is stored."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"END=1", str(self.path))
        self._thread.join()
        self._socket.close()
        for _, fd in self.stored:
            os.close(fd)


class Successor:
    """A main process that took over: nobody's child here, so it is watched by descriptor."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        """Signal it."""
        signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout_seconds: float = 10.0) -> int:
        """Wait for its end; its status is nobody's to know, so it counts as 0."""
        readable, _, _ = select.select([self._pidfd], [], [], timeout_seconds)
        assert readable, f"process {self.pid} still runs after {timeout_seconds:g} s"
        os.close(self._pidfd)
        return 0
