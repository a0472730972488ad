"""A new main process takes over from the running one, beside it and without a gap.

The successor is started by ``ExecReload`` of the unit, so it is the new release in the sandbox of
the new unit. It asks the incumbent over a unix socket, and both go through these steps::

    successor                                  incumbent
    connect                                ->
                                           <-  Inherit: listeners, namespaces, state of xDS
                                           <-  Certificate: all that are valid, with their keys
                                           <-  Begin: workloads served, how to speak to systemd
    starts workers, which accept beside
    the old ones; follows the control plane
    Prepared                               ->
                                               workers accept no more; ports and ZDS are left
                                               MAINPID= to systemd
                                           <-  Inherit: pipes of the workers
                                           <-  TakeOver
    adopts the workers, opens ports and ZDS    exits

If the successor fails before ``Prepared``, the incumbent goes on as if nothing had happened. Keys
pass through memory only.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.errors import MetalmeshError
from metalmesh.service.logs import Bare, Log
from metalmesh.ztunnel import messages
from metalmesh.ztunnel.ipc import Channel
from metalmesh.ztunnel.saved import workload_from_entry, workload_to_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from metalmesh.service.systemd import Notifier
    from metalmesh.ztunnel.process import Worker
    from metalmesh.ztunnel.saved import SavedWorkload

#: a successor that has not got ready by then is given up
PREPARE_SECONDS: Final = 25.0
#: how long the successor waits for what the incumbent has to give
INHERIT_SECONDS: Final = 10.0
#: name of the descriptor that holds the state of xDS
STATE: Final = "xds-state"
_FLUSH_POLL_SECONDS: Final = 0.005
#: variables of systemd's protocol that the successor needs; it is not started as main process
_ENVIRONMENT: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC")

log = Log("metalmesh.ztunnel.handover")


@dataclass(frozen=True, kw_only=True, slots=True)
class Estate:
    """What the incumbent has to give, and how it leaves."""

    #: listeners and namespaces, by the names they have in the fd store
    descriptors: Callable[[], Iterable[tuple[str, int]]]
    #: every valid one
    certificates: Callable[[], Iterable[messages.Certificate]]
    #: what is served, with the namespaces
    workloads: Callable[[], Iterable[SavedWorkload]]
    #: the state of xDS, as it is saved
    state: Callable[[], bytes]
    #: stop, and call :meth:`Incumbent.hand_over` last
    leave: Callable[[], None]


class Incumbent:
    """The end of the running main process."""

    def __init__(self, path: str, estate: Estate, notifier: Notifier) -> None:
        self._path = path
        self._estate = estate
        self._notifier = notifier
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._told: set[str] = set()
        #: set once the successor is ready to take over
        self.channel: Channel | None = None
        self._pid = 0

    def listen(self) -> None:
        """Wait for a successor; a path that cannot be used only costs the reload."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            Path(self._path).unlink(missing_ok=True)
            sock.bind(self._path)
            sock.listen(1)
        except OSError as error:
            sock.close()
            log.error("no reload possible", {"socket": Bare(self._path), "error": str(error)})
            return
        sock.settimeout(0)
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    def close(self) -> None:
        """Wait no more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        if self._task is not None:
            self._task.cancel()

    def _accept(self, sock: socket.socket) -> None:
        with suppress(BlockingIOError):
            peer, _ = sock.accept()
            data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid, uid, _ = struct.unpack("3i", data)
            busy = self._task is not None and not self._task.done()
            if uid not in (0, os.geteuid()) or busy or not self._notifier.enabled:
                reason = "one is under way" if busy else "not by this user, or not run by systemd"
                log.warning("reload refused", {"pid": pid, "reason": reason})
                peer.close()
                return
            self._task = asyncio.get_running_loop().create_task(self._converse(Channel(peer), pid))

    async def _converse(self, channel: Channel, pid: int) -> None:
        log.info("reload: successor has connected", {"pid": pid})
        self._told.clear()
        try:
            self._tell_everything(channel)
            async with asyncio.timeout(PREPARE_SECONDS):
                await _flush(channel)
                received = await _receive(channel)
            if not any(isinstance(item, messages.Prepared) for item, _ in received):
                raise MetalmeshError("it ended before it was ready")
        except (MetalmeshError, OSError, TimeoutError) as error:
            reason = str(error) or f"not ready after {PREPARE_SECONDS:g} s"
            log.error("reload failed, this process goes on", {"pid": pid, "error": reason})
            channel.close()
            return
        except asyncio.CancelledError:  # we stop: so does the successor
            channel.close()
            raise
        self.channel, self._pid = channel, pid
        self._estate.leave()

    def _tell_everything(self, channel: Channel) -> None:
        self._bequeath(channel)
        state = os.memfd_create(STATE)
        try:
            with os.fdopen(os.dup(state), "wb") as file:
                file.write(self._estate.state())
            channel.send(messages.Inherit(name=STATE), [state])
        finally:
            os.close(state)
        for certificate in self._estate.certificates():
            channel.send(certificate)
        workloads = tuple(map(workload_to_entry, self._estate.workloads()))
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        channel.send(messages.Begin(workloads=workloads, environment=environment))

    def _bequeath(self, channel: Channel) -> None:
        """Give the descriptors the successor has not got yet."""
        for name, fd in self._estate.descriptors():
            if name not in self._told:
                self._told.add(name)
                channel.send(messages.Inherit(name=name), [fd])

    async def hand_over(self, workers: Sequence[Worker]) -> None:
        """Last act of the incumbent: make the successor the unit's main process."""
        assert self.channel is not None
        self._bequeath(self.channel)
        living = [worker for worker in workers if not worker.channel.closed]
        for worker in living:  # the others had nothing to finish and have exited meanwhile
            name = f"worker-{worker.pid}"
            self.channel.send(messages.Inherit(name=name), [worker.channel.fileno()])
        self._notifier.send({"MAINPID": str(self._pid)})
        self.channel.send(messages.TakeOver())
        await _flush(self.channel)
        log.info("handed over", {"pid": self._pid, "workers": len(living)})
        self.channel.close()


class Predecessor:
    """The end of the successor; connecting raises MetalmeshError when nobody can hand over."""

    def __init__(self, path: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            raise MetalmeshError(
                f"no ztunnel to take over from at {path}: {error.strerror}; "
                "start or restart the service instead"
            ) from error
        self._channel = Channel(sock)
        #: by name in the fd store
        self.descriptors: list[tuple[str, int]] = []
        self.certificates: list[messages.Certificate] = []
        self.workloads: list[SavedWorkload] = []
        #: of xDS
        self.state = b""
        #: called when the incumbent has left and we serve in its place
        self.on_taken_over: Callable[[], None] = lambda: None

    def inherit(self) -> None:
        """Receive what the incumbent has; the environment for systemd becomes ours."""
        deadline = time.monotonic() + INHERIT_SECONDS
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        while True:
            poll.poll(max(0, int((deadline - time.monotonic()) * 1000)))
            for message, fds in self._channel.receive():
                if isinstance(message, messages.Begin):
                    self.workloads = [workload_from_entry(entry) for entry in message.workloads]
                    os.environ.update(message.environment)
                    return
                self._take(message, fds)
            if self._channel.closed:
                raise MetalmeshError("the running ztunnel refused; its log has why")
            if time.monotonic() >= deadline:
                raise MetalmeshError(f"the running ztunnel was silent for {INHERIT_SECONDS:g} s")

    def _take(self, message: messages.Message, fds: list[int]) -> None:
        if isinstance(message, messages.Inherit) and message.name == STATE:
            with os.fdopen(fds[0], "rb") as file:
                file.seek(0)
                self.state = file.read()
        elif isinstance(message, messages.Inherit):
            self.descriptors += [(message.name, fd) for fd in fds]
        elif isinstance(message, messages.Certificate):
            self.certificates.append(message)

    async def take_over(self) -> list[tuple[str, int]]:
        """We are ready: have the incumbent leave; return what it gave last."""
        self.descriptors = []
        self._channel.send(messages.Prepared())
        while True:
            for message, fds in await _receive(self._channel):
                if isinstance(message, messages.TakeOver):
                    self._channel.close()
                    return self.descriptors
                self._take(message, fds)
            if self._channel.closed:
                raise MetalmeshError("the running ztunnel ended before it handed over")


async def _receive(channel: Channel) -> list[tuple[messages.Message, list[int]]]:
    """What has arrived, at least one message unless the channel is closed."""
    loop = asyncio.get_running_loop()
    while True:
        found = channel.receive()
        if found or channel.closed:
            return found
        future: asyncio.Future[None] = loop.create_future()
        loop.add_reader(channel.fileno(), _complete, future)
        try:
            await future
        finally:
            loop.remove_reader(channel.fileno())


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _flush(channel: Channel) -> None:
    while channel.wants_write and not channel.closed:
        await asyncio.sleep(_FLUSH_POLL_SECONDS)
        channel.flush()
