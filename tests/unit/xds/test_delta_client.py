"""The delta client against a scripted control plane (istio-facts 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from metalmesh.errors import ProtocolError
from metalmesh.proto import discovery_pb2 as pb
from metalmesh.xds.delta_client import DeltaClient, NodeInfo, Subscription, Update

FRUIT = "type.googleapis.com/test.Fruit"
STONE = "type.googleapis.com/test.Stone"


def decode(data: bytes, name: str) -> str:
    if data == b"rotten":
        raise ProtocolError(f"{name}: it is rotten")
    return data.decode()


class Orchard:
    """A client and what it reported; ``refuse`` names resources the owner cannot take."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.refuse: dict[str, str] = {}
        self.client = DeltaClient(
            NodeInfo("ztunnel~1.1.1.1~z.ns~ns.svc", {"NODE_NAME": "node1"}),
            [
                Subscription(type_url=FRUIT, decode=decode),
                Subscription(type_url=STONE, decode=decode, required=False),
            ],
            self.on_update,
        )

    def on_update(self, update: Update) -> Mapping[str, str]:
        self.updates.append(update)
        return self.refuse


def response(
    resources: Mapping[str, tuple[str, bytes]] | None = None,
    *,
    removed: tuple[str, ...] = (),
    nonce: str = "n1",
    type_url: str = FRUIT,
) -> pb.DeltaDiscoveryResponse:
    message = pb.DeltaDiscoveryResponse(
        type_url=type_url, nonce=nonce, removed_resources=list(removed)
    )
    for name, (version, data) in (resources or {}).items():
        resource = message.resources.add(name=name, version=version)
        resource.resource.value = data
    return message


@pytest.fixture
def orchard() -> Orchard:
    return Orchard()


def test_first_requests_subscribe_by_wildcard_in_order(orchard: Orchard) -> None:
    """An empty subscribe list is the wildcard; the node is on the first request of each type."""
    requests = orchard.client.open_stream()
    assert [request.type_url for request in requests] == [FRUIT, STONE]
    for request in requests:
        assert request.node.id == "ztunnel~1.1.1.1~z.ns~ns.svc"
        assert request.node.metadata["NODE_NAME"] == "node1"
        assert not request.resource_names_subscribe
        assert not request.initial_resource_versions
        assert not request.response_nonce


def test_good_response_is_acknowledged_with_its_nonce(orchard: Orchard) -> None:
    answer = orchard.client.receive(response({"a": ("1", b"apple")}, nonce="n7"))
    assert (answer.type_url, answer.response_nonce) == (FRUIT, "n7")
    assert not answer.HasField("error_detail")
    assert orchard.updates == [Update(FRUIT, {"a": "apple"})]


def test_bad_resource_is_named_and_the_good_ones_are_applied(orchard: Orchard) -> None:
    """NACK text is ``name: reason; name: reason``; the bad one keeps its last good version."""
    orchard.client.receive(response({"b": ("1", b"berry")}))
    orchard.refuse = {"c": "no room"}
    answer = orchard.client.receive(
        response({"a": ("1", b"apple"), "b": ("2", b"rotten"), "c": ("1", b"cherry")}, nonce="n2")
    )
    assert answer.response_nonce == "n2"
    assert answer.error_detail.message == "b: it is rotten; c: no room"
    assert orchard.updates[-1].changed == {"a": "apple", "c": "cherry"}
    versions = orchard.client.open_stream()[0].initial_resource_versions
    assert dict(versions) == {"a": "1", "b": "1"}


def test_reconnect_names_the_versions_that_are_held(orchard: Orchard) -> None:
    orchard.client.receive(response({"a": ("1", b"apple"), "b": ("5", b"berry")}))
    orchard.client.receive(response({"a": ("2", b"apricot")}, removed=("b",)))
    fruit, stone = orchard.client.open_stream()
    assert dict(fruit.initial_resource_versions) == {"a": "2"}
    assert not stone.initial_resource_versions


def test_resource_wins_over_its_removal_in_one_response(orchard: Orchard) -> None:
    orchard.client.receive(response({"a": ("2", b"apricot")}, removed=("a", "b")))
    assert orchard.updates[-1] == Update(FRUIT, {"a": "apricot"}, ("b",))
    assert list(orchard.client.names(FRUIT)) == ["a"]


def test_synced_needs_one_acknowledged_answer_of_each_required_type(orchard: Orchard) -> None:
    """Even an empty one; a NACK is not enough; an optional type is not waited for."""
    assert orchard.client.pending() == [FRUIT]
    orchard.client.receive(response({"a": ("1", b"rotten")}))
    assert not orchard.client.synced
    orchard.client.receive(response())
    assert orchard.client.synced
    assert orchard.client.pending() == []


def test_type_that_was_never_subscribed_is_an_error(orchard: Orchard) -> None:
    with pytest.raises(ProtocolError, match=r"test\.Other"):
        orchard.client.receive(response(type_url="type.googleapis.com/test.Other"))


def test_saved_state_is_resumed_with_its_versions(orchard: Orchard) -> None:
    """DESIGN 2: a restarted component goes on from its last good state."""
    orchard.client.receive(response({"a": ("3", b"apple"), "b": ("1", b"berry")}))
    successor = Orchard()
    assert successor.client.restore(orchard.client.save()) == 2
    assert successor.updates == [Update(FRUIT, {"a": "apple", "b": "berry"}, restored=True)]
    assert successor.client.synced
    versions = successor.client.open_stream()[0].initial_resource_versions
    assert dict(versions) == {"a": "3", "b": "1"}


def test_saved_resources_that_no_longer_decode_are_asked_for_again(orchard: Orchard) -> None:
    orchard.client.receive(response({"a": ("3", b"carrot"), "b": ("1", b"berry")}))
    saved = orchard.client.save().replace(b"carrot", b"rotten")
    successor = Orchard()
    successor.client.restore(saved)
    assert dict(successor.client.open_stream()[0].initial_resource_versions) == {"b": "1"}


def test_state_saved_before_any_answer_does_not_count_as_synced(orchard: Orchard) -> None:
    successor = Orchard()
    successor.client.restore(orchard.client.save())
    assert not successor.client.synced


def test_unreadable_saved_state_is_refused(orchard: Orchard) -> None:
    with pytest.raises(ProtocolError, match="not readable"):
        orchard.client.restore(b"\xff\xff\xff\xff")
