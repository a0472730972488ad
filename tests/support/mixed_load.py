"""Load of every kind at once, and what became of it.

Short requests one after the other, long transfers that never pause, and connections that are idle
until the end. All of it checks what comes back, byte by byte.
"""

from __future__ import annotations

import dataclasses
import itertools
import socket
import threading
import time

from tests.support.apps import LongConnection
from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until

SHORT_CLIENTS = 2
TRANSFERS = 2
IDLE = 10
PAUSE_SECONDS = 0.005
CHUNK = bytes(range(256)) * 256


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One short request; instants are monotonic seconds."""

    began_at: float
    ended_at: float
    error: str
    """Why it was not served; empty when it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the load."""

    requests: int
    failures: tuple[str, ...]
    resets: int
    longest_request_seconds: float
    longest_gap_seconds: float
    """Between two served requests that follow each other, whoever made them."""
    transfers: int
    transfers_lost: int
    megabytes: float
    idle: int
    idle_lost: int


class MixedLoad:
    """The load, during the block; :meth:`outcome` afterwards."""

    def __init__(self, clients: list[Netns], address: str, port: int, *, idle: int = IDLE) -> None:
        self._clients, self._address, self._port = clients, address, port
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._idle = idle
        self._idle_connections: list[LongConnection] = []
        self.attempts: list[Attempt] = []
        #: error of every long transfer that was cut, and whole bytes that came back
        self.cut: list[str] = []
        self.echoed = 0
        self.idle_errors: list[str] = []

    def __enter__(self) -> MixedLoad:
        clients = itertools.cycle(self._clients)
        for _ in range(self._idle):
            connection = LongConnection(next(clients), self._address, self._port)
            assert connection.echo(b"open") == b"open"
            self._idle_connections.append(connection)
        bodies = [self._request_for_ever] * SHORT_CLIENTS + [self._transfer_for_ever] * TRANSFERS
        for body in bodies:
            self._threads.append(threading.Thread(target=body, args=(next(clients),)))
            self._threads[-1].start()
        wait_until(lambda: self.attempts and self.echoed, WAITS["traffic"], what="load")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for connection in self._idle_connections:
            try:
                if connection.echo(b"still there") != b"still there":
                    self.idle_errors.append("closed")
            except OSError as error:
                self.idle_errors.append(str(error))
            connection.__exit__()

    # --- short requests --------------------------------------------------------------------
    def _request_for_ever(self, client: Netns) -> None:
        for number in itertools.count():
            if self._stop.wait(PAUSE_SECONDS):
                return
            began_at = time.monotonic()
            error = self._request(client, b"request %d" % number)
            self.attempts.append(Attempt(began_at, time.monotonic(), error))

    def _request(self, client: Netns, text: bytes) -> str:
        try:
            with client.connect(self._address, self._port, timeout_seconds=15) as connection:
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: connection.recv(4096), b""))
                return "" if answer == text else f"answered {answer!r}"
        except OSError as error:
            return repr(error)

    # --- long transfers --------------------------------------------------------------------
    def _transfer_for_ever(self, client: Netns) -> None:
        """One connection as long as it lasts, then the next."""
        while not self._stop.is_set():
            try:
                with LongConnection(client, self._address, self._port) as connection:
                    while not self._stop.wait(PAUSE_SECONDS):
                        if connection.echo(CHUNK) != CHUNK:
                            raise ConnectionError("ended early")
                        self.echoed += len(CHUNK)
            except OSError as error:
                self.cut.append(repr(error))

    # --- what became of it -----------------------------------------------------------------
    def served_after(self, moment: float) -> bool:
        """Whether a request that began after the moment was served."""
        return any(not item.error and item.began_at > moment for item in self.attempts[-200:])

    def recovered_after(self, moment: float) -> float:
        """Seconds from the moment to the end of the first request that was begun after it."""
        ends = [item.ended_at for item in self.attempts if item.began_at > moment]
        return min(ends, default=moment) - moment

    def outcome(self) -> Outcome:
        """Everything counted; after the block."""
        errors = [item.error for item in self.attempts if item.error]
        served = sorted(item.ended_at for item in self.attempts if not item.error)
        gaps = [later - earlier for earlier, later in itertools.pairwise(served)]
        resets = sum("ConnectionReset" in text for text in (*errors, *self.cut, *self.idle_errors))
        return Outcome(
            requests=len(self.attempts),
            failures=tuple(errors),
            resets=resets,
            longest_request_seconds=max(i.ended_at - i.began_at for i in self.attempts),
            longest_gap_seconds=max(gaps, default=0.0),
            transfers=TRANSFERS,
            transfers_lost=len(self.cut),
            megabytes=self.echoed / 1e6,
            idle=self._idle,
            idle_lost=len(self.idle_errors),
        )
