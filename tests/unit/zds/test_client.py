"""The ztunnel's end of ZDS (istio-facts 9.1)."""

from __future__ import annotations

import pytest

from metalmesh.errors import ProtocolError
from metalmesh.zds.client import Keep, Remove, Retain, Serve, ZdsSession
from metalmesh.zds.messages import (
    AddWorkload,
    DelWorkload,
    KeepWorkload,
    SnapshotSent,
    decode_hello,
    encode_request,
)

WEB = AddWorkload("uid-web", "web", "shop", "web")
CART = AddWorkload("uid-cart", "cart", "shop", "cart")
ADD_WEB = encode_request(WEB)
SNAPSHOT = encode_request(SnapshotSent())


@pytest.fixture
def session() -> ZdsSession:
    return ZdsSession()


def test_session_opens_with_version_one(session: ZdsSession) -> None:
    decode_hello(session.open())
    assert not session.synced


def test_snapshot_names_what_stays(session: ZdsSession) -> None:
    """Added or kept before the snapshot's end; deleted meanwhile does not count."""
    assert session.receive(ADD_WEB, 1) == Serve(WEB)
    assert session.receive(encode_request(CART), 1) == Serve(CART)
    assert session.receive(encode_request(KeepWorkload("uid-old")), 0) == Keep("uid-old")
    assert session.receive(encode_request(DelWorkload("uid-cart")), 0) == Remove("uid-cart")
    assert session.receive(SNAPSHOT, 0) == Retain(frozenset({"uid-web", "uid-old"}))
    assert session.synced


def test_live_changes_follow_the_snapshot(session: ZdsSession) -> None:
    session.receive(SNAPSHOT, 0)
    assert session.receive(ADD_WEB, 1) == Serve(WEB)
    assert session.receive(encode_request(DelWorkload("uid-web")), 0) == Remove("uid-web")


@pytest.mark.parametrize(
    ("packet", "descriptors", "message"),
    [
        pytest.param(ADD_WEB, 0, "add of 'uid-web': 0 descriptors", id="add without"),
        pytest.param(ADD_WEB, 2, "2 descriptors", id="add with two"),
        pytest.param(encode_request(DelWorkload("u")), 1, "del of 'u': 1 desc", id="del with"),
        pytest.param(SNAPSHOT, 1, "snapshot_sent: 1 descriptors", id="snapshot with"),
        pytest.param(b"\xff\xff", 0, "not protobuf", id="noise"),
        pytest.param(b"", 0, "empty", id="end"),
    ],
)
def test_broken_requests_end_the_session(
    session: ZdsSession, packet: bytes, descriptors: int, message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        session.receive(packet, descriptors)


@pytest.mark.parametrize(
    "packet", [SNAPSHOT, encode_request(KeepWorkload("u"))], ids=["second snapshot", "late keep"]
)
def test_snapshot_messages_after_the_snapshot_end_the_session(
    session: ZdsSession, packet: bytes
) -> None:
    session.receive(SNAPSHOT, 0)
    with pytest.raises(ProtocolError):
        session.receive(packet, 0)
