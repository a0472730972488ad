"""Routes of one workload: decided by main, remembered until main says they are void."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

from metalmesh.ztunnel.messages import Endpoint, Resolve, Route
from metalmesh.ztunnel.worker.metrics import Party

if TYPE_CHECKING:
    from typing import Protocol

    from metalmesh.ztunnel.worker.context import Context

    class Customer(Protocol):
        """A connection that waits for its route."""

        def routed(self, route: Route) -> None:
            """The route has arrived."""

        def expire(self) -> None:
            """It did not arrive in time."""


Destination = tuple[str, int]
_MAX_ROUTES: Final = 10_000
_MAX_WAITING: Final = 4096
_IDS: Final = count(1)


class Routes:
    """Routes by destination, and the connections that wait for one."""

    def __init__(self, context: Context, uid: str) -> None:
        self._context = context
        self._uid = uid
        self._known: dict[Destination, Route] = {}
        self._parties: dict[int, tuple[Endpoint, Party]] = {}
        self._waiting: dict[Destination, dict[Customer, None]] = {}
        self._asked: dict[int, Destination] = {}
        self._count = 0

    def request(self, destination: Destination, customer: Customer) -> None:
        """Call ``routed`` now or when main has answered."""
        route = self._known.get(destination)
        if route is not None:
            customer.routed(route)
            return
        if self._count >= _MAX_WAITING:
            customer.routed(Route(kind="error", error="too many connections wait for routes"))
            return
        self._count += 1
        self._context.undecided.add(customer)
        waiting = self._waiting.get(destination)
        if waiting is None:
            waiting = self._waiting[destination] = {}
            self._ask(destination)
        waiting[customer] = None

    def _ask(self, destination: Destination) -> None:
        request_id = next(_IDS)
        self._asked[request_id] = destination
        address, port = destination
        self._context.send(
            Resolve(request_id=request_id, uid=self._uid, address=address, port=port)
        )

    def answer(self, request_id: int, route: Route) -> bool:
        """Main's answer; false if the question was not ours."""
        destination = self._asked.pop(request_id, None)
        if destination is None:
            return False
        if route.cacheable:
            if len(self._known) >= _MAX_ROUTES:
                self._known.clear()
            self._known[destination] = route
        for customer in self._waiting.pop(destination, {}):
            self._count -= 1
            self._context.undecided.discard(customer)
            customer.routed(route)
        return True

    def forget(self, destination: Destination, customer: Customer) -> None:
        """A connection waits no more."""
        waiting = self._waiting.get(destination, {})
        if waiting.pop(customer, 0) is None:
            self._count -= 1
        if not waiting:
            self._waiting.pop(destination, None)

    def party(self, endpoint: Endpoint) -> Party:
        """The labels of a route's endpoint, made ready once."""
        known = self._parties.get(id(endpoint))
        if known is None or known[0] is not endpoint:
            if len(self._parties) >= _MAX_ROUTES:
                self._parties.clear()
            known = self._parties[id(endpoint)] = (endpoint, Party(endpoint.workload))
        return known[1]

    def invalidate(self) -> None:
        """What main decided so far is void; questions on their way are asked again."""
        self._known.clear()
        self._parties.clear()
        self._asked.clear()
        for destination in self._waiting:
            self._ask(destination)
