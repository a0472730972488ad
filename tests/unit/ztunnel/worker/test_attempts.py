"""Which endpoint a connection tries next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from metalmesh.routing.outliers import CONSECUTIVE_FAILURES, Outliers
from metalmesh.ztunnel.messages import Endpoint
from metalmesh.ztunnel.worker.attempts import (
    ATTEMPT_SECONDS,
    MAX_ATTEMPTS,
    Attempts,
    first_endpoint,
    key_of,
)
from metalmesh.ztunnel.worker.metrics import Metrics

ENDPOINTS = tuple(Endpoint(address=f"10.0.0.{n}:80", weight=n) for n in range(5))


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, str]]] = []

    def line(self, _level: str, _target: str, message: str, fields: Any) -> None:
        self.lines.append((message, {name: value for name, value, _ in fields}))


def server() -> Any:
    context = SimpleNamespace(loop=SimpleNamespace(now=0.0), metrics=Metrics(), log=Log())
    return SimpleNamespace(
        context=context, outliers=Outliers(), workload=SimpleNamespace(name="client")
    )


def test_every_attempt_is_at_another_endpoint_and_they_are_bounded() -> None:
    where = server()
    attempts = Attempts(where, ENDPOINTS, 0.0)
    tried = [ENDPOINTS[0]]
    lasts = []
    while (following := attempts.failed(tried[-1], "refused")) is not None:
        tried.append(following)
        lasts.append(attempts.last)
    assert len({key_of(item) for item in tried}) == MAX_ATTEMPTS
    assert lasts == [False, True]
    assert where.context.metrics.retries == MAX_ATTEMPTS - 1


def test_two_endpoints_are_two_attempts() -> None:
    attempts = Attempts(server(), ENDPOINTS[:2], 0.0)
    assert attempts.failed(ENDPOINTS[0], "") is ENDPOINTS[1]
    assert attempts.last
    assert attempts.failed(ENDPOINTS[1], "") is None


def test_no_further_attempt_after_the_connect_timeout() -> None:
    where = server()
    attempts = Attempts(where, ENDPOINTS, 0.0)
    where.context.loop.now = ATTEMPT_SECONDS
    assert attempts.failed(ENDPOINTS[0], "") is not None
    where.context.loop.now = ATTEMPT_SECONDS * MAX_ATTEMPTS
    assert attempts.failed(ENDPOINTS[1], "") is None


def test_ejected_endpoints_are_not_tried_first_but_rather_than_none() -> None:
    where, (good, bad) = server(), ENDPOINTS[:2]
    for number in range(CONSECUTIVE_FAILURES):
        where.context.loop.now = number / 10
        Attempts(where, (good, bad), 0.0).failed(bad, "refused")
    assert where.context.log.lines == [
        (
            "endpoint ejected",
            {
                "src.workload": "client",
                "dst.addr": bad.address,
                "seconds": "30",
                "error": "refused",
            },
        )
    ]
    assert where.context.metrics.ejections == 1
    assert {first_endpoint(where, (good, bad)).address for _ in range(50)} == {good.address}
    assert first_endpoint(where, (bad,)) is bad
    assert Attempts(where, (good, bad), 0.0).failed(good, "refused") is bad
    where.context.loop.now = 40
    assert {first_endpoint(where, (good, bad)).address for _ in range(50)} == {
        bad.address
    }  # by weight again
