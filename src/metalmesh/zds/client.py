"""The ztunnel's end of ZDS, without I/O (istio-facts 9.1).

One :class:`ZdsSession` per connection. The shell sends :meth:`ZdsSession.open`, hands every packet
with the number of descriptors that came along to :meth:`ZdsSession.receive`, carries the returned
command out and answers with an :class:`~metalmesh.zds.messages.Ack`.

A :class:`ProtocolError` ends the session: answer with its text, drop the connection, start anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from metalmesh.errors import ProtocolError
from metalmesh.zds.messages import (
    AddWorkload,
    DelWorkload,
    KeepWorkload,
    Request,
    SnapshotSent,
    decode_request,
    encode_hello,
)


@dataclass(frozen=True, slots=True)
class Serve:
    """Serve this workload in the namespace of the descriptor that came along."""

    workload: AddWorkload


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing to do: a workload of before goes on."""

    uid: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Stop serving a workload at once."""

    uid: str


@dataclass(frozen=True, slots=True)
class Retain:
    """The snapshot is complete: stop serving whatever is not in ``uids``."""

    uids: frozenset[str]


Command = Serve | Keep | Remove | Retain


class ZdsSession:
    """What one connection to a node agent has said so far."""

    def __init__(self) -> None:
        self._snapshot: set[str] = set()
        #: whether the snapshot is complete
        self.synced = False

    def open(self) -> bytes:
        """The first packet to send."""
        return encode_hello()

    def receive(self, packet: bytes, descriptors: int) -> Command:
        """Take one request; return what to do about it."""
        request = decode_request(packet)
        expected = 1 if isinstance(request, AddWorkload) else 0
        if descriptors != expected:
            raise ProtocolError(
                f"ZDS {_name(request)}: {descriptors} descriptors came along, expected {expected}"
            )
        match request:
            case AddWorkload(uid=uid):
                self._snapshot.add(uid)
                return Serve(request)
            case KeepWorkload(uid=uid):
                return self._keep(uid)
            case DelWorkload(uid=uid):
                self._snapshot.discard(uid)
                return Remove(uid)
            case SnapshotSent():
                return self._complete()

    def _keep(self, uid: str) -> Command:
        if self.synced:
            raise ProtocolError(f"ZDS keep of {uid!r} after the snapshot: only an add is valid now")
        self._snapshot.add(uid)
        return Keep(uid)

    def _complete(self) -> Command:
        if self.synced:
            raise ProtocolError("ZDS snapshot_sent came twice on one connection")
        self.synced = True
        return Retain(frozenset(self._snapshot))


def _name(request: Request) -> str:
    names: dict[type, str] = {
        AddWorkload: "add",
        KeepWorkload: "keep",
        DelWorkload: "del",
        SnapshotSent: "snapshot_sent",
    }
    uid = getattr(request, "uid", "")
    return names[type(request)] + (f" of {uid!r}" if uid else "")
