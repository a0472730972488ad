"""ZDS messages: one protobuf per SEQPACKET packet, no length prefix (istio-facts 9.1).

The ztunnel connects and says :class:`Hello`; the agent then sends one request at a time and waits
for its :class:`Ack`. The netns descriptor of an :class:`AddWorkload` travels beside the packet
(SCM_RIGHTS) and is therefore no field here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from metalmesh.errors import ProtocolError
from metalmesh.proto import zds_pb2

#: bytes; both sides read into a buffer of this size, a longer packet would be cut
MAX_PACKET_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Hello:
    """First packet of a ztunnel; it names version 1, the only one there is."""


@dataclass(frozen=True, slots=True)
class AddWorkload:
    """Serve this workload in the network namespace whose descriptor comes along."""

    uid: str
    name: str
    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True)
class KeepWorkload:
    """Go on serving a workload whose netns the agent cannot hand over; before the snapshot only."""

    uid: str


@dataclass(frozen=True, slots=True)
class DelWorkload:
    """Stop serving a workload at once."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """Everything that was neither added nor kept up to here is gone."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Answer to every request; an empty error means done."""

    error: str = ""


Request = AddWorkload | KeepWorkload | DelWorkload | SnapshotSent


def _checked(packet: bytes, what: str) -> bytes:
    if len(packet) > MAX_PACKET_BYTES:
        raise ProtocolError(
            f"ZDS {what} takes {len(packet)} bytes, the protocol allows {MAX_PACKET_BYTES}: "
            "shorten the names of the workload"
        )
    return packet


def _parse(
    message: zds_pb2.ZdsHello | zds_pb2.WorkloadRequest | zds_pb2.WorkloadResponse,
    packet: bytes,
    what: str,
) -> None:
    if not packet:
        raise ProtocolError(f"ZDS {what} is empty: the peer closed the connection")
    try:
        message.ParseFromString(_checked(packet, what))
    except DecodeError as error:
        raise ProtocolError(f"ZDS {what} of {len(packet)} bytes is not protobuf: {error}") from None


def encode_hello() -> bytes:
    """Return the packet a ztunnel opens with."""
    return bytes(zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString())


def decode_hello(packet: bytes) -> Hello:
    """Parse a hello; raise :class:`ProtocolError` for any version but 1."""
    message = zds_pb2.ZdsHello()
    _parse(message, packet, "hello")
    if message.version != zds_pb2.V1:
        raise ProtocolError(f"ZDS hello asks for version {message.version}; only 1 is spoken here")
    return Hello()


def encode_request(request: Request) -> bytes:
    """Return the packet of a request; :class:`ProtocolError` when it would be too long."""
    message = zds_pb2.WorkloadRequest()
    match request:
        case AddWorkload(uid, name, namespace, service_account):
            message.add.uid = uid
            message.add.workload_info.name = name
            message.add.workload_info.namespace = namespace
            message.add.workload_info.service_account = service_account
        case KeepWorkload(uid):
            message.keep.uid = uid
        case DelWorkload(uid):
            getattr(message, "del").uid = uid  # the field is named by a keyword of Python
        case SnapshotSent():
            message.snapshot_sent.SetInParent()
    return _checked(bytes(message.SerializeToString()), f"request for {request}")


def decode_request(packet: bytes) -> Request:
    """Parse a request; an Add without its workload info is refused."""
    message = zds_pb2.WorkloadRequest()
    _parse(message, packet, "request")
    match message.WhichOneof("payload"):
        case "add":
            add = message.add
            if not add.uid or not add.HasField("workload_info"):
                raise ProtocolError(f"ZDS add of {add.uid!r} lacks its uid or workload_info")
            info = add.workload_info
            return AddWorkload(add.uid, info.name, info.namespace, info.service_account)
        case "keep":
            return KeepWorkload(_uid(message.keep.uid, "keep"))
        case "del":
            return DelWorkload(_uid(getattr(message, "del").uid, "del"))
        case "snapshot_sent":
            return SnapshotSent()
    raise ProtocolError("ZDS request has no payload this side knows: add, keep, del, snapshot_sent")


def _uid(uid: str, what: str) -> str:
    if not uid:
        raise ProtocolError(f"ZDS {what} lacks its uid")
    return uid


def encode_response(ack: Ack) -> bytes:
    """Return the packet of an answer; a long error is cut so that it fits."""
    message = zds_pb2.WorkloadResponse()
    message.ack.SetInParent()
    message.ack.error = ack.error.encode()[: MAX_PACKET_BYTES - 16].decode(errors="ignore")
    return _checked(bytes(message.SerializeToString()), "answer")


def decode_response(packet: bytes) -> Ack:
    """Parse an answer."""
    message = zds_pb2.WorkloadResponse()
    _parse(message, packet, "answer")
    if message.WhichOneof("payload") != "ack":
        raise ProtocolError("ZDS answer has no payload this side knows: ack")
    return Ack(error=message.ack.error)
