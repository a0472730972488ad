"""Who has an address: labels of source workloads for logs and metrics, asked of main once."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

from metalmesh.ztunnel.messages import LookupSource
from metalmesh.ztunnel.worker.loop import Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.ztunnel.messages import Labels, Message
    from metalmesh.ztunnel.worker.loop import Loop

#: main answers from memory; without an answer in this time the connection goes on unlabelled
_WAIT_SECONDS: Final = 1.0
_MAX_KNOWN: Final = 10_000

Done = "Callable[[Labels | None], None]"


class Sources:
    """Labels by address, until main says that things have changed."""

    def __init__(self, loop: Loop, send: Callable[[Message], None]) -> None:
        self._send = send
        self._known: dict[str, Labels | None] = {}
        self._ids = count(1)
        self._asked: dict[int, str] = {}
        self._waiting: dict[str, list[Callable[[Labels | None], None]]] = {}
        self._deadlines: Deadlines[int] = Deadlines(loop, _WAIT_SECONDS, self._expire)

    def lookup(self, address: str, done: Callable[[Labels | None], None]) -> None:
        """Call ``done(labels)``, at once if they are known."""
        if address in self._known:
            done(self._known[address])
            return
        waiting = self._waiting.setdefault(address, [])
        waiting.append(done)
        if len(waiting) == 1:
            request_id = next(self._ids)
            self._asked[request_id] = address
            self._deadlines.add(request_id)
            self._send(LookupSource(request_id=request_id, address=address))

    def answer(self, request_id: int, labels: Labels | None) -> None:
        """Main's answer."""
        address = self._asked.pop(request_id, None)
        if address is None:
            return
        self._deadlines.discard(request_id)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[address] = labels
        self._settle(address, labels)

    def forget(self) -> None:
        """Main's state has changed."""
        self._known.clear()

    def _expire(self, request_id: int) -> None:
        address = self._asked.pop(request_id, None)
        if address is not None:
            self._settle(address, None)

    def _settle(self, address: str, labels: Labels | None) -> None:
        for done in self._waiting.pop(address, ()):
            done(labels)
