"""One data worker as main sees it: a process, its pipe, and what it owes us.

A worker is either our own child, or adopted: started by an earlier main process that handed over
to us or died, and finishing the connections it had then.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from metalmesh.ztunnel.ipc import Channel, socket_pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metalmesh.ztunnel import messages

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Worker:
    """One running data worker."""

    #: number among our own workers; -1 for an adopted one
    slot: int
    pid: int
    pidfd: int
    channel: Channel
    started_at: float
    heard_at: float
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    #: uid -> future of the answer to AddWorkload
    acks: dict[str, asyncio.Future[str]] = field(default_factory=dict)
    replies: dict[int, asyncio.Future[messages.Message]] = field(default_factory=dict)

    @property
    def adopted(self) -> bool:
        """Whether an earlier main process started it."""
        return self.process is None

    def send(self, message: messages.Message, fds: Sequence[int] = ()) -> None:
        """Send a message; what the socket does not take at once follows when it can."""
        self.channel.send(message, fds)
        if self.channel.wants_write:
            asyncio.get_running_loop().add_writer(self.channel.fileno(), self._flush)

    def _flush(self) -> None:
        self.channel.flush()
        if self.channel.closed or not self.channel.wants_write:
            asyncio.get_running_loop().remove_writer(self.channel.fileno())

    def kill(self) -> None:
        """End it; by descriptor, so that a reused pid can never be meant."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def bury(self) -> int | None:
        """It has exited: close everything of it; return its status if it was our child."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        status = None if self.process is None else self.process.wait()
        loop.remove_reader(self.channel.fileno())
        loop.remove_writer(self.channel.fileno())
        self.channel.close()
        for ack in self.acks.values():
            ack.cancel()
        for reply in self.replies.values():
            reply.cancel()
        return status


def start_worker(slot: int, now: float) -> Worker:
    """Start a worker process; raises OSError when this machine cannot."""
    ours, theirs = socket_pair()
    with theirs:
        fd = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "metalmesh.ztunnel.worker", "--fd", str(fd)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
        )
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        ours.close()
        process.kill()
        process.wait()
        raise
    return Worker(slot, process.pid, pidfd, Channel(ours), now, now, process)


def adopt_worker(pid: int, fd: int, now: float) -> Worker:
    """Take over the worker at the other end of ``fd``; raises OSError when it is gone."""
    sock = socket.socket(fileno=fd)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        sock.close()
        raise
    poll = select.poll()
    poll.register(sock, 0)
    if poll.poll(0):  # hung up: the worker is gone and its pid may be anybody's
        os.close(pidfd)
        sock.close()
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    channel = Channel(sock)
    channel.resume()
    return Worker(-1, pid, pidfd, channel, now, now, ready=True)


def resolve(future: asyncio.Future[T] | None, value: T) -> None:
    """Complete a future that is still waited for."""
    if future is not None and not future.done():
        future.set_result(value)
