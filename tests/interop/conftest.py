"""A pair of captured workloads, one of whose workers gives way to a real peer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metalmesh.constants import PORT_HBONE
from metalmesh.ztunnel import messages as m
from tests.support import envoy
from tests.support.data_worker import Pair, captured_pair
from tests.support.netns import Netns
from tests.support.pki import Credentials
from tests.support.waits import WAITS, wait_until

APP_PORT = 8080
Replace = Callable[..., contextlib.AbstractContextManager[None]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here makes namespaces."""
    for item in items:
        if "tests/interop" in item.nodeid:
            item.add_marker(pytest.mark.root)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with captured_pair(log_level="debug") as made:
        made.route(APP_PORT)
        yield made
        for worker in (made.source, made.destination):
            assert "internal error" not in worker.log()


@pytest.fixture
def replaced(pair: Pair, tmp_path: Path) -> Replace:
    """``with replaced("source"):`` an Envoy takes the place of the client's worker."""

    @contextlib.contextmanager
    def replace(
        side: str, *, credentials: Credentials | None = None, **options: Any
    ) -> Iterator[None]:
        for name, member in (("client", pair.client), ("server", pair.server)):
            envoy.write_credentials(tmp_path, name, pair.ca.leaf(member.identity))
        address = pair.server.addresses[0]
        if side == "destination":
            member, main, port, name = pair.server, pair.destination, PORT_HBONE, "server"
            config = envoy.destination_config(tmp_path, address, [APP_PORT], **options)
        else:
            member, main, port, name = pair.client, pair.source, 15001, "client"
            config = envoy.source_config(tmp_path, address, [APP_PORT], **options)
        if credentials is not None:
            envoy.write_credentials(tmp_path, name, credentials)
        main.send(m.RemoveWorkload(uid=member.uid))
        wait_until(lambda: not listens(member.where, port), WAITS["traffic"])
        with envoy.envoy(member.where, tmp_path, side, config):
            wait_until(lambda: listens(member.where, port), WAITS["traffic"])
            yield

    return replace


def listens(where: Netns, port: int) -> bool:
    """Whether somebody listens on a port."""
    return bool(where.run("ss", "-Hltn", "sport", f"= {port}"))


def tunnels(pair: Pair) -> int:
    """HBONE connections to the server that are open."""
    return len(
        pair.server.where.run("ss", "-Htn", "state", "established", "sport", "= 15008").splitlines()
    )
