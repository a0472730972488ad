"""The connection to the node agent (istio-facts 9.1): lock-step requests over SEQPACKET."""

from __future__ import annotations

import asyncio
import os
import socket
from array import array
from typing import TYPE_CHECKING, Final, Protocol

from metalmesh.errors import MetalmeshError, ProtocolError
from metalmesh.service.backoff import Backoff
from metalmesh.service.logs import Bare, Log
from metalmesh.zds.client import Keep, Remove, Retain, Serve, ZdsSession
from metalmesh.zds.messages import MAX_PACKET_BYTES, Ack, encode_response

if TYPE_CHECKING:
    from metalmesh.zds.client import Command
    from metalmesh.zds.messages import AddWorkload

CONNECT_BACKOFF_SECONDS: Final = (0.02, 15.0)
#: a workload that could not be started is tried again this often
RETRY_SECONDS: Final = 5.0
#: room for more descriptors than are ever valid, so that too many are seen and refused
_MAX_FDS: Final = 4

log = Log("metalmesh.ztunnel.zds")


class WorkloadKeeper(Protocol):
    """What the node agent can have done."""

    async def serve(self, workload: AddWorkload, netns_fd: int) -> None:
        """Serve a workload; takes the descriptor over, also when it fails."""

    def remove(self, uid: str) -> None:
        """Stop serving a workload at once."""

    def retain(self, uids: frozenset[str]) -> None:
        """Stop serving everything else."""


class ZdsClient:
    """Stays connected to the agent and does what it asks."""

    def __init__(self, path: str, keeper: WorkloadKeeper) -> None:
        self._path = path
        self._keeper = keeper
        self._backoff = Backoff(*CONNECT_BACKOFF_SECONDS)
        self._failed: dict[str, tuple[AddWorkload, asyncio.Task[None]]] = {}
        self._last_error = ""
        #: whether the agent's snapshot is complete on the present connection
        self.synced = False

    @property
    def pending(self) -> dict[str, AddWorkload]:
        """Workloads that could not be started yet, by uid."""
        return {uid: workload for uid, (workload, _) in self._failed.items()}

    async def run(self) -> None:
        """Connect, and connect again, for ever."""
        while True:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    sock.settimeout(0)
                    await asyncio.get_running_loop().sock_connect(sock, self._path)
                    await self._converse(sock)
            except (OSError, ProtocolError) as error:
                self._report(error)
            except Exception as error:
                # a fault of ours must not end the process, which serves with what it has
                log.exception("conversation with the node agent broken", error)
            finally:
                self.synced = False
            await asyncio.sleep(self._backoff.next_delay())

    def _report(self, error: OSError | ProtocolError) -> None:
        text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        if text != self._last_error:
            log.warning("node agent lost", {"socket": Bare(self._path), "error": text})
        self._last_error = text

    async def _converse(self, sock: socket.socket) -> None:
        session = ZdsSession()
        await _send(sock, session.open())
        while True:
            packet, fds = await _receive(sock)
            if not packet:
                raise ProtocolError("the node agent closed the connection")
            if self._last_error or not session.synced:
                self._backoff.reset()
                self._last_error = ""
            try:
                command = session.receive(packet, len(fds))
            except ProtocolError as error:
                for fd in fds:
                    os.close(fd)
                await _send(sock, encode_response(Ack(str(error))))
                raise
            error_text = await self._carry_out(command, fds)
            self.synced = session.synced
            await _send(sock, encode_response(Ack(error_text)))

    async def _carry_out(self, command: Command, fds: list[int]) -> str:
        """Do it; return the text for the answer, "" when it is done."""
        match command:
            case Serve(workload):
                return await self._serve(workload, fds[0])
            case Remove(uid):
                self._forget(uid)
                self._keeper.remove(uid)
            case Retain(uids):
                for uid in set(self._failed) - uids:
                    self._forget(uid)
                self._keeper.retain(uids)
                log.info("snapshot complete", {"workloads": len(uids)})
            case Keep():
                pass
        return ""

    async def _serve(self, workload: AddWorkload, fd: int) -> str:
        self._forget(workload.uid)
        spare = os.dup(fd)
        try:
            await self._keeper.serve(workload, fd)
        except (MetalmeshError, OSError) as error:
            text = f"failure to start proxy : {error}"
            log.error("workload not started", {"uid": workload.uid, "error": str(error)})
            retrying = asyncio.create_task(self._retry(workload, spare))
            self._failed[workload.uid] = workload, retrying
            return text
        os.close(spare)
        return ""

    async def _retry(self, workload: AddWorkload, fd: int) -> None:
        try:
            while True:
                await asyncio.sleep(RETRY_SECONDS)
                try:
                    await self._keeper.serve(workload, os.dup(fd))
                except (MetalmeshError, OSError) as error:
                    log.error("workload not started", {"uid": workload.uid, "error": str(error)})
                else:
                    del self._failed[workload.uid]
                    return
        finally:
            os.close(fd)

    def _forget(self, uid: str) -> None:
        if uid in self._failed:
            _, task = self._failed.pop(uid)
            task.cancel()


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and its descriptors; an empty packet is the end."""
    while True:
        try:
            packet, ancillary, flags, _ = sock.recvmsg(
                MAX_PACKET_BYTES, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
            break
        except BlockingIOError:
            await _readable(sock)
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise ProtocolError(f"a ZDS packet exceeds {MAX_PACKET_BYTES} bytes")
    return packet, list(fds)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(sock, readable)
    try:
        await future
    finally:
        loop.remove_reader(sock)


async def _send(sock: socket.socket, packet: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, packet)
