"""The workloads this node serves: their namespaces and listening sockets.

Both are kept in systemd's fd store, as ``netns-INODE``, ``listener-PORT-INODE`` and
``dns-udp4-INODE`` and the like (inode of the network namespace, which an open descriptor keeps
alive). After a restart the same namespace gets its old sockets back, with every connection and
query that queued in them meanwhile. The pipes of the workers are there, too, as ``worker-PID``:
they do not notice the death of main, and the next one adopts them.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from metalmesh.constants import PORT_DNS, PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND
from metalmesh.net.netns import run_in_netns
from metalmesh.net.sockets import NO_FAMILY, make_dns_listener, make_listener
from metalmesh.service.logs import Log
from metalmesh.ztunnel.view import LocalView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from metalmesh.service.systemd import Notifier
    from metalmesh.zds.messages import AddWorkload
    from metalmesh.ztunnel.messages import Policies

#: in the order in which workers expect them
PORTS: Final = (PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT, PORT_HBONE)
#: what is open in a namespace: its name in the fd store, without the inode, and how it is made
_LISTENERS: Final[Mapping[str, Callable[[], socket.socket]]] = {
    f"listener-{port}": partial(make_listener, port) for port in PORTS
}
_DNS: Final[Mapping[str, Callable[[], socket.socket]]] = {
    f"dns-{name}{version}": partial(make_dns_listener, kind, address, PORT_DNS)
    for name, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM))
    for version, address in ((4, "127.0.0.1"), (6, "::1"))
}

_PREFIXES: Final = ("listener-", "dns-", "netns-")

log = Log("metalmesh.ztunnel.locals")


@dataclass(slots=True, eq=False)
class LocalWorkload:
    """One workload that is served, and what the workers were last told of it."""

    info: AddWorkload
    netns_fd: int
    #: device and inode of the namespace
    netns_id: tuple[int, int]
    #: everything that is open there, by name in the fd store (without the inode)
    sockets: dict[str, socket.socket]
    view: LocalView = field(default_factory=LocalView)
    policies: Policies | None = None

    @property
    def fds(self) -> list[int]:
        """Descriptors of an AddWorkload message."""
        return [*(self.sockets[name].fileno() for name in _LISTENERS), self.netns_fd]

    @property
    def dns_sockets(self) -> list[socket.socket]:
        """What the DNS proxy serves: one of each kind for each address family there is."""
        return [sock for name, sock in self.sockets.items() if name in _DNS]

    @property
    def named_fds(self) -> Iterator[tuple[str, int]]:
        """Every descriptor by the name it has in the fd store."""
        inode = self.netns_id[1]
        for name, sock in self.sockets.items():
            yield f"{name}-{inode}", sock.fileno()
        yield f"netns-{inode}", self.netns_fd

    def close(self) -> None:
        """Close our descriptors; workers have their own."""
        os.close(self.netns_fd)
        for sock in self.sockets.values():
            sock.close()


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
            elif name.startswith(_PREFIXES) and name not in self._waiting:
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

    def open(self, netns_fd: int, *, dns: bool) -> dict[str, socket.socket]:
        """The sockets of a namespace: those of before where there are any, else new ones."""
        _, inode = netns_identity(netns_fd)
        stored_netns = self._waiting.pop(f"netns-{inode}", None)
        if stored_netns is not None:
            os.close(stored_netns)
        else:
            self._notifier.store(f"netns-{inode}", [netns_fd])
        wanted = {**_LISTENERS, **_DNS} if dns else _LISTENERS
        found: dict[str, socket.socket] = {}
        for name in wanted:
            fd = self._waiting.pop(f"{name}-{inode}", None)
            if fd is not None:
                found[name] = socket.socket(fileno=fd)
        missing = {name: make for name, make in wanted.items() if name not in found}
        try:
            run_in_netns(netns_fd, partial(_make_all, missing, found))
        except BaseException:
            for sock in found.values():
                sock.close()
            self.release(netns_identity(netns_fd))
            raise
        for name in missing.keys() & found.keys():
            self._notifier.store(f"{name}-{inode}", [found[name].fileno()])
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


def _make_all(
    makers: Mapping[str, Callable[[], socket.socket]], found: dict[str, socket.socket]
) -> None:
    """Make sockets in the current namespace; an address family it lacks is passed over."""
    for name, make in makers.items():
        try:
            found[name] = make()
        except OSError as error:
            if error.errno not in NO_FAMILY:
                raise


def _names(inode: int) -> list[str]:
    return [f"{name}-{inode}" for name in ("netns", *_LISTENERS, *_DNS)]
