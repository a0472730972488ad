"""The data workers: start them, talk to them, replace the dead.

A worker that exits or stops answering is replaced; the others are not disturbed, because every
worker has descriptors of its own for the same listening sockets. Whoever owns the pool sends a new
worker everything it needs in ``on_start``.

When main hands over to its successor (an upgrade or a changed configuration) or dies, the next one
adopts its workers. They stop accepting as soon as its own workers serve, and live until their last
connection has ended: they still hear of policies and removed workloads, and are counted and drained
like the others.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Protocol

from metalmesh.errors import ProtocolError
from metalmesh.service.backoff import Backoff
from metalmesh.service.logs import Log
from metalmesh.ztunnel import messages
from metalmesh.ztunnel.process import Worker, adopt_worker, resolve, start_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

RESTART_INITIAL_SECONDS: Final = 0.05
RESTART_MAXIMUM_SECONDS: Final = 5.0
#: a worker that lived this long was healthy: its next restart is immediate again
HEALTHY_SECONDS: Final = 10.0
PING_INTERVAL_SECONDS: Final = 5.0
PING_TIMEOUT_SECONDS: Final = 15.0
ACK_TIMEOUT_SECONDS: Final = 5.0
COLLECT_TIMEOUT_SECONDS: Final = 1.0
#: beyond the drain deadline, before a worker is killed
EXIT_GRACE_SECONDS: Final = 2.0
FLUSH_INTERVAL_SECONDS: Final = 0.01

log = Log("metalmesh.ztunnel.workers")


class PoolOwner(Protocol):
    """What the pool tells the main process."""

    def on_start(self, worker: Worker) -> None:
        """A new worker runs and knows nothing yet."""

    def on_message(self, worker: Worker, message: messages.Message) -> None:
        """A worker said something the pool does not handle itself."""

    def on_exit(self, worker: Worker) -> None:
        """A worker is gone."""


class WorkerPool:
    """``count`` workers, always."""

    def __init__(self, count: int, owner: PoolOwner) -> None:
        self._owner = owner
        self._count = count
        self._workers: dict[int, Worker] = {}
        #: started by a main process that handed over to us; they only finish what they have
        self._adopted: list[Worker] = []
        self._backoff = [
            Backoff(RESTART_INITIAL_SECONDS, RESTART_MAXIMUM_SECONDS) for _ in range(count)
        ]
        self._stopping = False
        self._next_request = 0
        self._gone = asyncio.Event()
        self.restarts = 0

    @property
    def workers(self) -> list[Worker]:
        """Those that serve now; adopted ones are not among them."""
        return list(self._workers.values())

    @property
    def everybody(self) -> list[Worker]:
        """Adopted workers, too."""
        return [*self._workers.values(), *self._adopted]

    @property
    def ready(self) -> bool:
        """Whether every worker has reported that its loop runs."""
        return len(self._workers) == self._count and all(w.ready for w in self._workers.values())

    def start(self) -> None:
        """Start every worker."""
        for slot in range(self._count):
            self._spawn(slot)

    def broadcast(self, message: messages.Message) -> None:
        """Tell every worker."""
        for worker in self.everybody:
            worker.send(message)

    def adopt(self, pid: int, fd: int) -> bool:
        """Take over a worker of the main process before us, if it lives; takes ``fd`` over."""
        try:
            worker = adopt_worker(pid, fd, asyncio.get_running_loop().time())
        except OSError as error:
            log.warning("worker not adopted", {"pid": pid, "error": str(error)})
            return False
        self._adopted.append(worker)
        self._watch(worker)
        log.info("worker adopted", {"pid": pid})
        return True

    def retire_adopted(self, deadline_seconds: float) -> None:
        """Our own workers serve now: those of a main process that died accept no more."""
        for worker in self._adopted:
            worker.send(messages.Drain(deadline_seconds=deadline_seconds))

    async def hand_over(self, deadline_seconds: float) -> list[Worker]:
        """Have every worker accept no more; return all, for our successor to adopt."""
        self._stopping = True
        loop = asyncio.get_running_loop()
        for worker in self.everybody:
            # what it says from now on is for the successor
            loop.remove_reader(worker.channel.fileno())
            if not worker.adopted:
                worker.send(messages.Drain(deadline_seconds=deadline_seconds))
        give_up_at = loop.time() + EXIT_GRACE_SECONDS
        while any(w.channel.wants_write for w in self.everybody) and loop.time() < give_up_at:
            await asyncio.sleep(FLUSH_INTERVAL_SECONDS)
        return self.everybody

    def _spawn(self, slot: int) -> None:
        if self._stopping:
            return
        loop = asyncio.get_running_loop()
        try:
            worker = start_worker(slot, loop.time())
        except OSError as error:
            log.error("worker not started", {"error": str(error)})
            loop.call_later(self._backoff[slot].next_delay(), self._spawn, slot)
            return
        self._workers[slot] = worker
        self._watch(worker)
        self._owner.on_start(worker)

    def _watch(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(worker.channel.fileno(), self._receive, worker)
        loop.add_reader(worker.pidfd, self._exited, worker)

    def _receive(self, worker: Worker) -> None:
        worker.heard_at = asyncio.get_running_loop().time()
        try:
            received = worker.channel.receive()
        except ProtocolError as error:
            self._kill(worker, str(error))
            return
        for message, fds in received:
            for fd in fds:
                os.close(fd)
            self._dispatch(worker, message)
        if worker.channel.closed:
            # it is about to exit; should it not, it is silent from now on and will be killed
            asyncio.get_running_loop().remove_reader(worker.channel.fileno())

    def _dispatch(self, worker: Worker, message: messages.Message) -> None:
        match message:
            case messages.Ready():
                worker.ready = True
                self._owner.on_message(worker, message)
            case messages.Ack(uid=uid, error=error):
                resolve(worker.acks.pop(uid, None), error)
            case messages.MetricsReply() | messages.ConnectionsReply():
                resolve(worker.replies.pop(message.request_id, None), message)
            case messages.Pong() | messages.Drained():
                pass  # hearing it was the point; the exit follows by itself
            case _:
                self._owner.on_message(worker, message)

    def _exited(self, worker: Worker) -> None:
        if not worker.channel.closed:
            self._receive(worker)  # what it said last
        status = worker.bury()
        if worker.adopted:
            self._adopted.remove(worker)
        else:
            del self._workers[worker.slot]
        self._owner.on_exit(worker)
        self._gone.set()
        if worker.adopted or self._stopping:
            return
        self.restarts += 1
        loop = asyncio.get_running_loop()
        backoff = self._backoff[worker.slot]
        if loop.time() - worker.started_at > HEALTHY_SECONDS:
            backoff.reset()
        log.error("worker exited", {"pid": worker.pid, "status": status})
        loop.call_later(backoff.next_delay(), self._spawn, worker.slot)

    async def add_workload(self, message: messages.AddWorkload, fds: Sequence[int]) -> str:
        """Have every worker serve a workload; return the first error, "" when all do.

        A worker that dies meanwhile does not count: its successor gets the workload anyway.
        """
        loop = asyncio.get_running_loop()
        waiting = []
        for worker in self.workers:
            future: asyncio.Future[str] = loop.create_future()
            worker.acks[message.uid] = future
            worker.send(message, fds)
            waiting.append(future)
        if not waiting:
            return ""
        done, late = await asyncio.wait(waiting, timeout=ACK_TIMEOUT_SECONDS)
        errors = [f.result() for f in done if not f.cancelled() and f.result()]
        if late:
            errors.append(f"a worker did not answer within {ACK_TIMEOUT_SECONDS:g} s")
        return errors[0] if errors else ""

    async def collect(self, what: str) -> list[tuple[Worker, messages.Message]]:
        """Ask every worker for its ``metrics`` or ``connections``; late ones are left out."""
        loop = asyncio.get_running_loop()
        waiting: dict[asyncio.Future[messages.Message], Worker] = {}
        for worker in self.everybody:
            if worker.ready:
                self._next_request += 1
                future: asyncio.Future[messages.Message] = loop.create_future()
                worker.replies[self._next_request] = future
                waiting[future] = worker
                worker.send(messages.Collect(request_id=self._next_request, what=what))
        if not waiting:
            return []
        done, _ = await asyncio.wait(waiting, timeout=COLLECT_TIMEOUT_SECONDS)
        return [(waiting[f], f.result()) for f in done if not f.cancelled()]

    async def watch(self) -> None:
        """Ping the workers for ever; kill those that have stopped answering."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PING_INTERVAL_SECONDS)
            for worker in self.everybody:
                if loop.time() - worker.heard_at > PING_TIMEOUT_SECONDS:
                    self._kill(worker, f"silent for {PING_TIMEOUT_SECONDS:g} s")
                else:
                    worker.send(messages.Ping(request_id=0))

    def _kill(self, worker: Worker, reason: str) -> None:
        log.error("killing worker", {"pid": worker.pid, "error": reason})
        worker.kill()

    async def drain(self, deadline_seconds: float) -> None:
        """Let every worker finish its connections; return when all have exited."""
        self._stopping = True
        self.broadcast(messages.Drain(deadline_seconds=deadline_seconds))
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + deadline_seconds + EXIT_GRACE_SECONDS
        while self.everybody:
            self._gone.clear()
            try:
                async with asyncio.timeout_at(kill_at):
                    await self._gone.wait()
            except TimeoutError:
                for worker in self.everybody:
                    self._kill(worker, "still running after the drain deadline")
                kill_at = loop.time() + EXIT_GRACE_SECONDS
