"""The server's end of delta xDS, as a playbook: requests in, responses out (istio-facts 3.2)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalmesh.constants import TYPE_ADDRESS, TYPE_AUTHORIZATION, TYPE_NETWORK_POLICY
from metalmesh.controlplane.snapshot import Snapshot, changed_names, served_resource
from metalmesh.errors import ProtocolError
from metalmesh.proto import discovery_pb2 as pb
from metalmesh.xds import delta_server
from metalmesh.xds.delta_server import DeltaStream


class Playbook:
    """A stream, the snapshot it is served from, and what the client holds."""

    def __init__(self, node: str = "node1") -> None:
        self.stream = DeltaStream(node)
        self.snapshot = Snapshot()
        self.client: dict[str, dict[str, bytes]] = {}

    def serve(self, **contents: dict[str, str] | None) -> None:
        """Publish ``address={name: content}, policy={...}, network={...}``."""
        types = dict(self.snapshot.types)
        for kind, items in contents.items():
            types[URLS[kind]] = {
                name: served_resource(
                    name,
                    text.encode(),
                    aliases=(f"/{name}.ip",),
                    groups=("svc",) if name.startswith("wl") else (),
                    nodes=frozenset({"node1"}) if name.startswith("only1") else None,
                )
                for name, text in (items or {}).items()
            }
        old, self.snapshot = self.snapshot, Snapshot(types)
        for url, names in changed_names(old, self.snapshot).items():
            self.stream.changed(url, names, self.snapshot)

    def ask(self, kind: str = "address", **fields: object) -> delta_server.Answer | None:
        """Send a request."""
        request = pb.DeltaDiscoveryRequest(type_url=URLS.get(kind, kind))
        for name, value in fields.items():
            if name == "versions":
                request.initial_resource_versions.update(value)  # type: ignore[arg-type]
            elif name == "error":
                request.error_detail.message = str(value)
            elif name == "nonce":
                request.response_nonce = str(value)
            else:
                getattr(request, f"resource_names_{name}").extend(value)
        return self.stream.receive(request, self.snapshot)

    def next(self) -> pb.DeltaDiscoveryResponse | None:
        """The response that is due, if any."""
        return self.stream.next_response(self.snapshot)

    def take(self) -> tuple[set[str], set[str]]:
        """Receive the next response, keep its content, ACK it; (sent, removed)."""
        response = self.next()
        assert response is not None, "nothing is due"
        held = self.client.setdefault(response.type_url, {})
        held.update({item.name: item.resource.value for item in response.resources})
        for name in response.removed_resources:
            held.pop(name, None)
        request = pb.DeltaDiscoveryRequest(
            type_url=response.type_url, response_nonce=response.nonce
        )
        self.stream.receive(request, self.snapshot)
        return {item.name for item in response.resources}, set(response.removed_resources)


URLS = {
    "address": TYPE_ADDRESS,
    "policy": TYPE_AUTHORIZATION,
    "network": TYPE_NETWORK_POLICY,
}


@pytest.fixture
def book() -> Playbook:
    return Playbook()


def test_wildcard_gets_everything_then_only_changes(book: Playbook) -> None:
    book.serve(address={"a": "1", "b": "1"})
    book.ask()
    assert book.take() == ({"a", "b"}, set())
    assert book.next() is None
    book.serve(address={"a": "2", "c": "1"})
    assert book.take() == ({"a", "c"}, {"b"})
    assert book.next() is None


def test_wildcard_is_answered_even_when_there_is_nothing(book: Playbook) -> None:
    """Else a ztunnel never becomes ready (istio-facts 14)."""
    book.ask("policy")
    assert book.take() == (set(), set())
    assert book.next() is None


def test_unserved_type_is_answered_too(book: Playbook) -> None:
    book.ask("type.googleapis.com/unknown")
    assert book.take() == (set(), set())


def test_reconnect_gets_what_changed_and_what_went(book: Playbook) -> None:
    book.serve(address={"same": "1", "new": "1", "changed": "2"})
    version = served_resource("same", b"1").version
    book.ask(versions={"same": version, "changed": version, "gone": version})
    assert book.take() == ({"changed", "new"}, {"gone"})


def test_reconnect_without_changes_is_still_answered(book: Playbook) -> None:
    book.serve(address={"a": "1"})
    book.ask(versions={"a": served_resource("a", b"1").version})
    assert book.take() == (set(), set())


def test_versions_are_hashes_of_the_content(book: Playbook) -> None:
    book.serve(address={"a": "1"})
    book.ask()
    first = book.next()
    assert first is not None
    assert first.resources[0].version == served_resource("other", b"1").version
    assert first.resources[0].resource.type_url == TYPE_ADDRESS


def test_one_response_is_in_flight_and_changes_meanwhile_coalesce(book: Playbook) -> None:
    """A slow client costs names, never copies of content."""
    book.serve(address={"a": "1"})
    book.ask()
    first = book.next()
    assert first is not None
    for content in "23456":
        book.serve(address={"a": content})
        assert book.next() is None
    book.ask(nonce=first.nonce)
    second = book.next()
    assert second is not None
    assert [item.resource.value for item in second.resources] == [b"6"]


def test_change_that_is_taken_back_while_in_flight_is_never_sent(book: Playbook) -> None:
    book.serve(address={"a": "1"})
    book.ask()
    first = book.next()
    assert first is not None
    book.serve(address={"a": "2"})
    book.serve(address={"a": "1"})
    book.ask(nonce=first.nonce)
    assert book.next() is None


def test_nack_is_reported_and_the_same_content_not_sent_again(book: Playbook) -> None:
    book.serve(address={"a": "bad"})
    book.ask()
    response = book.next()
    assert response is not None
    answer = book.ask(nonce=response.nonce, error="a: reason")
    assert answer == delta_server.Answer(TYPE_ADDRESS, response.nonce, "a: reason")
    assert book.next() is None
    assert book.stream.status()[TYPE_ADDRESS]["last_error"] == "a: reason"
    book.serve(address={"a": "good"})
    assert book.take() == ({"a"}, set())
    assert book.stream.status()[TYPE_ADDRESS]["last_error"] == ""


def test_stale_nonce_answers_nothing(book: Playbook) -> None:
    book.serve(address={"a": "1"})
    book.ask()
    response = book.next()
    assert response is not None
    assert book.ask(nonce="999", error="x") is None
    book.serve(address={"a": "2"})
    assert book.next() is None
    assert book.ask(nonce=response.nonce) == delta_server.Answer(TYPE_ADDRESS, response.nonce)
    assert book.ask(nonce=response.nonce) is None
    assert book.take() == ({"a"}, set())


def test_policies_are_sent_before_the_workloads_that_list_them(book: Playbook) -> None:
    """A ztunnel ignores a listed policy that it does not know (istio-facts 3.2)."""
    book.ask("address")
    book.take()
    book.ask("policy")
    book.take()
    book.serve(address={"w": "lists p"}, policy={"p": "1"})
    assert book.take() == ({"p"}, set())
    assert book.take() == ({"w"}, set())


def test_workloads_wait_while_a_policy_cannot_be_sent_yet(book: Playbook) -> None:
    book.ask("address")
    book.take()
    book.serve(policy={"p": "1"})
    book.ask("policy")
    in_flight = book.next()
    assert in_flight is not None
    book.serve(policy={"p": "1", "q": "1"}, address={"w": "lists q"})
    assert book.next() is None
    book.ask("policy", nonce=in_flight.nonce)
    assert book.take() == ({"q"}, set())
    assert book.take() == ({"w"}, set())


def test_large_content_is_split(book: Playbook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_server, "MAX_RESPONSE_BYTES", 25)
    book.serve(address=dict.fromkeys("abcde", "x" * 10))
    book.ask()
    assert book.take() == ({"a", "b", "c"}, set())
    assert book.take() == ({"d", "e"}, set())
    assert book.next() is None


# --- on demand -------------------------------------------------------------------------------


@pytest.fixture
def on_demand(book: Playbook) -> Playbook:
    """The first request subscribes and unsubscribes ``*``: nothing yet."""
    book.serve(address={"a": "1", "b": "1", "svc": "1", "wl1": "1", "wl2": "1"})
    book.ask(subscribe=["*"], unsubscribe=["*"])
    assert book.next() is None
    return book


def test_on_demand_gets_what_it_names(on_demand: Playbook) -> None:
    on_demand.ask(subscribe=["a"])
    assert on_demand.take() == ({"a"}, set())
    on_demand.serve(address={"a": "2", "b": "2"})
    assert on_demand.take() == ({"a"}, set())
    assert on_demand.next() is None


def test_on_demand_by_address_gets_the_primary_name_with_its_alias(on_demand: Playbook) -> None:
    on_demand.ask(subscribe=["/b.ip"])
    response = on_demand.next()
    assert response is not None
    (item,) = response.resources
    assert (item.name, list(item.aliases)) == ("b", ["/b.ip"])


def test_on_demand_service_brings_its_workloads_now_and_later(on_demand: Playbook) -> None:
    on_demand.ask(subscribe=["svc"])
    assert on_demand.take() == ({"svc", "wl1", "wl2"}, set())
    on_demand.serve(address={"svc": "1", "wl2": "1", "wl3": "1", "a": "1"})
    assert on_demand.take() == ({"wl3"}, {"wl1"})


def test_unknown_name_is_answered_by_its_removal(on_demand: Playbook) -> None:
    """The client waits for the name or for its deletion."""
    on_demand.ask(subscribe=["/10.9.9.9"])
    assert on_demand.take() == (set(), {"/10.9.9.9"})
    on_demand.ask(subscribe=["/10.9.9.9"])
    assert on_demand.take() == (set(), {"/10.9.9.9"})


def test_name_that_appears_later_is_sent_then(on_demand: Playbook) -> None:
    on_demand.ask(subscribe=["late"])
    on_demand.take()
    on_demand.serve(address={"late": "1"})
    assert on_demand.take() == ({"late"}, set())


def test_name_asked_for_again_is_sent_again(on_demand: Playbook) -> None:
    on_demand.ask(subscribe=["a"])
    on_demand.take()
    on_demand.ask(subscribe=["a"])
    assert on_demand.take() == ({"a"}, set())


def test_unsubscribed_name_is_not_sent_any_more(on_demand: Playbook) -> None:
    on_demand.ask(subscribe=["a", "b"])
    on_demand.take()
    on_demand.ask(unsubscribe=["a"])
    on_demand.serve(address={"a": "2", "b": "2"})
    assert on_demand.take() == ({"b"}, set())


def test_on_demand_reconnect_keeps_what_the_client_holds_and_answers_what_it_waits_for(
    book: Playbook,
) -> None:
    """It subscribes to nothing and lists what it has; an empty version is a pending name."""
    book.serve(address={"same": "1", "changed": "2", "other": "1", "pending": "1"})
    version = served_resource("same", b"1").version
    held = {"same": version, "changed": version, "gone": version}
    book.ask(
        subscribe=["*"], unsubscribe=["*"], versions={**held, "/pending.ip": "", "/nobody": ""}
    )
    assert book.take() == ({"changed", "pending"}, {"gone", "/nobody"})
    book.serve(address={"same": "2", "changed": "2", "other": "2", "pending": "1"})
    assert book.take() == ({"same"}, set())


def test_wildcard_may_be_added_and_dropped(on_demand: Playbook) -> None:
    on_demand.ask(subscribe=["a"])
    on_demand.take()
    on_demand.ask(subscribe=["*"])
    assert on_demand.take() == ({"b", "svc", "wl1", "wl2"}, set())
    on_demand.ask(unsubscribe=["*"])
    on_demand.serve(address={"a": "2", "b": "2"})
    assert on_demand.take() == ({"a"}, set())


# --- scope and limits ------------------------------------------------------------------------


def test_resources_of_other_nodes_are_not_sent() -> None:
    first, second = Playbook("node1"), Playbook("node2")
    for book in (first, second):
        book.serve(network={"only1-p": "1", "all": "1"})
        book.ask("network")
    assert first.take() == ({"only1-p", "all"}, set())
    assert second.take() == ({"all"}, set())
    second.ask("network", subscribe=["only1-p"])
    assert second.take() == (set(), {"only1-p"})


def test_resource_that_moves_to_another_node_is_removed_here() -> None:
    book = Playbook("node1")
    here = served_resource("p", b"1", nodes=frozenset({"node1"}))
    there = served_resource("p", b"1", nodes=frozenset({"node2"}))
    book.snapshot = Snapshot({TYPE_NETWORK_POLICY: {"p": here}})
    book.ask("network")
    assert book.take() == ({"p"}, set())
    old, book.snapshot = book.snapshot, Snapshot({TYPE_NETWORK_POLICY: {"p": there}})
    changes = changed_names(old, book.snapshot)
    book.stream.changed(TYPE_NETWORK_POLICY, changes[TYPE_NETWORK_POLICY], book.snapshot)
    assert book.take() == (set(), {"p"})


def test_limits_end_the_stream(book: Playbook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_server, "MAX_SUBSCRIPTIONS", 2)
    monkeypatch.setattr(delta_server, "MAX_TYPES", 2)
    with pytest.raises(ProtocolError, match="at most 2 resources"):
        book.ask(subscribe=["a", "b", "c"])
    book.ask("one")
    book.ask("two")
    with pytest.raises(ProtocolError, match="at most 2 types"):
        book.ask("three")
    with pytest.raises(ProtocolError, match="without type_url"):
        Playbook().ask("")


CONTENT = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("123"), max_size=6)
STEPS = st.lists(st.one_of(CONTENT, st.sampled_from(["send", "answer", "nack"])), max_size=25)


@given(STEPS)
@settings(max_examples=200)
def test_client_always_ends_up_with_what_is_served(steps: list) -> None:
    """Whatever the order of changes and answers, nothing is lost and nothing left behind."""
    held: dict[str, bytes] = {}
    book = Playbook()
    book.ask()
    pending: pb.DeltaDiscoveryResponse | None = None
    for step in [*steps, *["answer", "send"] * 3]:
        if isinstance(step, dict):
            book.serve(address=step)
        elif step == "send" and pending is None:
            pending = book.next()
            for item in pending.resources if pending else ():
                held[item.name] = item.resource.value
            for name in pending.removed_resources if pending else ():
                held.pop(name, None)
        elif step != "send" and pending is not None:
            book.ask(nonce=pending.nonce, **({"error": "x: no"} if step == "nack" else {}))
            pending = None
    served = {name: item.data for name, item in book.snapshot.of_type(TYPE_ADDRESS).items()}
    assert held == served
