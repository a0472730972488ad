"""The workloads this node serves: their namespaces and listening sockets.

Both are kept in systemd's fd store, as ``netns-INODE`` and ``listener-PORT-INODE`` (inode of the
network namespace, which an open descriptor keeps alive). After a restart the same namespace gets
its old sockets back, with every connection that queued in them meanwhile. The pipes of the workers
are there, too, as ``worker-PID``: they do not notice the death of main, and the next one adopts
them.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from metalmesh.constants import PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND
from metalmesh.net.netns import run_in_netns
from metalmesh.net.sockets import make_listener
from metalmesh.service.logs import Log
from metalmesh.ztunnel.view import LocalView

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from metalmesh.service.systemd import Notifier
    from metalmesh.zds.messages import AddWorkload
    from metalmesh.ztunnel.messages import Policies

#: in the order in which workers expect them
PORTS: Final = (PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT, PORT_HBONE)

log = Log("metalmesh.ztunnel.locals")


@dataclass(slots=True, eq=False)
class LocalWorkload:
    """One workload that is served, and what the workers were last told of it."""

    info: AddWorkload
    netns_fd: int
    #: device and inode of the namespace
    netns_id: tuple[int, int]
    listeners: list[socket.socket]
    view: LocalView = field(default_factory=LocalView)
    policies: Policies | None = None

    @property
    def fds(self) -> list[int]:
        """Descriptors of an AddWorkload message."""
        return [*(listener.fileno() for listener in self.listeners), self.netns_fd]

    @property
    def named_fds(self) -> Iterator[tuple[str, int]]:
        """The same descriptors by the names they have in the fd store."""
        inode = self.netns_id[1]
        for port, listener in zip(PORTS, self.listeners, strict=True):
            yield f"listener-{port}-{inode}", listener.fileno()
        yield f"netns-{inode}", self.netns_fd

    def close(self) -> None:
        """Close our descriptors; workers have their own."""
        os.close(self.netns_fd)
        for listener in self.listeners:
            listener.close()


def netns_identity(fd: int) -> tuple[int, int]:
    """What tells one namespace from another, whatever descriptor refers to it."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class DescriptorStore:
    """Listening sockets and namespaces that outlive this process."""

    def __init__(self, notifier: Notifier, received: Iterable[tuple[str, int]]) -> None:
        self._notifier = notifier
        self._waiting: dict[str, int] = {}
        self._workers: list[tuple[int, int]] = []
        self.receive(received)

    def receive(self, received: Iterable[tuple[str, int]]) -> None:
        """Take descriptors of before, from systemd or from the main process before us."""
        for name, fd in received:
            if name.startswith("worker-") and name[7:].isdigit():
                self._workers.append((int(name[7:]), fd))
            elif name.startswith(("listener-", "netns-")) and name not in self._waiting:
                self._waiting[name] = fd
            else:
                log.warning("closing a stored descriptor that is not ours", {"name": name})
                os.close(fd)
                self._notifier.unstore(name)

    def store_worker(self, pid: int, fd: int) -> None:
        """Keep our end of a worker's pipe for the main process after us."""
        self._notifier.store(f"worker-{pid}", [fd])

    def forget_worker(self, pid: int) -> None:
        """The worker is gone."""
        self._notifier.unstore(f"worker-{pid}")

    def take_workers(self) -> list[tuple[int, int]]:
        """Pid and pipe of the workers that the main process before us has left."""
        workers, self._workers = self._workers, []
        return workers

    def netns(self, netns_id: tuple[int, int]) -> int | None:
        """A duplicate of the stored descriptor of a namespace; None when there is none."""
        fd = self._waiting.get(f"netns-{netns_id[1]}")
        if fd is None or netns_identity(fd) != netns_id:
            return None
        return os.dup(fd)

    def open(self, netns_fd: int) -> list[socket.socket]:
        """The listeners of a namespace: those of before where there are any, else new ones."""
        _, inode = netns_identity(netns_fd)
        stored_netns = self._waiting.pop(f"netns-{inode}", None)
        if stored_netns is not None:
            os.close(stored_netns)
        else:
            self._notifier.store(f"netns-{inode}", [netns_fd])
        found: list[socket.socket] = []
        try:
            for port in PORTS:
                name = f"listener-{port}-{inode}"
                fd = self._waiting.pop(name, None)
                if fd is not None:
                    found.append(socket.socket(fileno=fd))
                    continue
                found.append(run_in_netns(netns_fd, partial(make_listener, port)))
                self._notifier.store(name, [found[-1].fileno()])
        except BaseException:
            for listener in found:
                listener.close()
            self.release(netns_identity(netns_fd))
            raise
        return found

    def release(self, netns_id: tuple[int, int]) -> None:
        """The namespace is no longer served."""
        for name in _names(netns_id[1]):
            self._notifier.unstore(name)

    def release_unclaimed(self) -> None:
        """Close what nobody asked for: its workload went while we were not running."""
        for name, fd in self._waiting.items():
            os.close(fd)
            self._notifier.unstore(name)
        self._waiting.clear()


def _names(inode: int) -> list[str]:
    return [f"netns-{inode}", *(f"listener-{port}-{inode}" for port in PORTS)]
