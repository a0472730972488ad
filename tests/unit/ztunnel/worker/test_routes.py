"""Routes: asked once, remembered, void when main says so."""

from __future__ import annotations

import pytest

from metalmesh.ztunnel import messages as m
from metalmesh.ztunnel.worker import routes as rt
from metalmesh.ztunnel.worker.attempts import choose_endpoint
from metalmesh.ztunnel.worker.context import Context
from metalmesh.ztunnel.worker.logs import LogWriter
from metalmesh.ztunnel.worker.loop import Loop

WEB = ("10.0.0.9", 80)
ROUTE = m.Route(kind="tcp", endpoints=(m.Endpoint(address="10.0.0.1:80"),))


class Customer:
    """A connection that waits for a route."""

    def __init__(self) -> None:
        self.got: list[m.Route] = []

    def routed(self, route: m.Route) -> None:
        self.got.append(route)

    def expire(self) -> None:
        self.got.append(m.Route(kind="expired"))


@pytest.fixture
def sent() -> list[m.Message]:
    return []


@pytest.fixture
def routes(sent: list[m.Message]) -> rt.Routes:
    loop = Loop()
    return rt.Routes(Context(loop, LogWriter(loop), sent.append), "uid")


def test_connections_to_one_place_share_a_question(routes, sent) -> None:
    customers = [Customer(), Customer()]
    for customer in customers:
        routes.request(WEB, customer)
    (question,) = sent
    assert (question.uid, question.address, question.port) == ("uid", *WEB)
    assert routes.answer(question.request_id, ROUTE)
    assert [customer.got for customer in customers] == [[ROUTE], [ROUTE]]
    later = Customer()
    routes.request(WEB, later)
    assert later.got == [ROUTE]
    assert len(sent) == 1


def test_route_that_must_not_be_kept_is_asked_again(routes, sent) -> None:
    first, second = Customer(), Customer()
    routes.request(WEB, first)
    once = m.Route(kind="error", error="not yet", cacheable=False)
    routes.answer(sent[0].request_id, once)
    routes.request(WEB, second)
    assert (first.got, second.got, len(sent)) == ([once], [], 2)


def test_invalidation_asks_again_for_those_who_wait(routes, sent) -> None:
    """An answer that was given before the change must not be used after it."""
    customer = Customer()
    routes.request(WEB, customer)
    routes.invalidate()
    stale, fresh = sent
    assert not routes.answer(stale.request_id, m.Route(kind="passthrough"))
    assert customer.got == []
    routes.answer(fresh.request_id, ROUTE)
    assert customer.got == [ROUTE]


def test_answers_to_others_are_not_taken(routes, sent) -> None:
    assert not routes.answer(4711, ROUTE)


def test_who_gave_up_is_not_called(routes, sent) -> None:
    customer = Customer()
    routes.request(WEB, customer)
    routes.forget(WEB, customer)
    routes.answer(sent[0].request_id, ROUTE)
    assert customer.got == []


def test_waiting_is_bounded(routes, sent, monkeypatch) -> None:
    monkeypatch.setattr(rt, "_MAX_WAITING", 2)
    customers = [Customer() for _ in range(3)]
    for number, customer in enumerate(customers):
        routes.request(("10.0.0.9", number), customer)
    assert [len(customer.got) for customer in customers] == [0, 0, 1]
    assert customers[2].got[0].kind == "error"
    routes.answer(sent[0].request_id, ROUTE)
    routes.request(("10.0.0.9", 99), Customer())
    assert len(sent) == 3


def test_party_of_an_endpoint_is_made_once(routes) -> None:
    endpoint = m.Endpoint(address="10.0.0.1:80", workload={"name": "a"})
    assert routes.party(endpoint) is routes.party(endpoint)
    assert routes.party(endpoint).labels == {"name": "a"}


def test_endpoints_are_chosen_by_weight() -> None:
    """Per connection, at random; weight 0 is never chosen while others are there."""
    endpoints = tuple(m.Endpoint(address=str(w), weight=w) for w in (0, 1, 3))
    counts = dict.fromkeys(endpoints[i].address for i in range(3))
    chosen = [choose_endpoint(endpoints).address for _ in range(4000)]
    counts = {address: chosen.count(address) for address in counts}
    assert counts["0"] == 0
    assert 800 < counts["1"] < 1200
    assert choose_endpoint(endpoints[:1]) is endpoints[0]
