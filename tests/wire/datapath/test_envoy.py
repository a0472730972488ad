"""Envoy on either side of the tunnel: the protocol is HBONE and not something of our own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from metalmesh.constants import PORT_HBONE
from metalmesh.ztunnel import messages as m
from tests.bench import envoy
from tests.support import tcp_apps as apps
from tests.support.data_worker import Pair
from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until
from tests.wire.datapath.conftest import APP_PORT


def listens(where: Netns, port: int) -> bool:
    """Whether somebody listens on a port."""
    return bool(where.run("ss", "-Hltn", "sport", str(port)))


@contextlib.contextmanager
def replaced(pair: Pair, side: str, tmp_path: Path) -> Iterator[None]:
    """An Envoy takes the place of a worker, with the certificate of its workload."""
    for name, member in (("client", pair.client), ("server", pair.server)):
        envoy.write_credentials(tmp_path, name, pair.ca.leaf(member.identity))
    address = pair.server.addresses[0]
    if side == "destination":
        member, main, port = pair.server, pair.destination, PORT_HBONE
        config = envoy.destination_config(tmp_path, address, [APP_PORT])
    else:
        member, main, port = pair.client, pair.source, 15001
        config = envoy.source_config(tmp_path, address, [APP_PORT])
    main.send(m.RemoveWorkload(uid=member.uid))
    wait_until(lambda: not listens(member.where, port), WAITS["traffic"])
    with envoy.envoy(member.where, tmp_path, side, config):
        wait_until(lambda: listens(member.where, port), WAITS["traffic"])
        yield


@pytest.mark.parametrize("side", ["destination", "source"])
def test_traffic_with_envoy_is_unchanged(pair: Pair, side: str, tmp_path: Path) -> None:
    """Upload with digest, echo with half-close, and many connections over one tunnel."""
    address, client = pair.server.addresses[0], pair.client.where
    data = os.urandom(20_000_000)
    with replaced(pair, side, tmp_path):
        with (
            apps.tcp_app(pair.server.where, APP_PORT, apps.hash_upload),
            client.connect(address, APP_PORT) as sock,
        ):
            sock.settimeout(60)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert apps.read_all(sock).decode() == hashlib.sha256(data).hexdigest()
        with apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
            assert apps.echo_through(client, address, APP_PORT, 8_000_000)
            for _ in range(20):
                assert apps.echo_through(client, address, APP_PORT, 1000)
    ours = pair.source if side == "destination" else pair.destination
    assert "internal error" not in ours.log()


def test_reset_of_an_application_behind_envoy_is_a_reset(pair: Pair, tmp_path: Path) -> None:
    """An abnormal end stays one, whatever code Envoy gives it."""
    with (
        replaced(pair, "destination", tmp_path),
        apps.tcp_app(pair.server.where, APP_PORT, apps.reset_after_request),
        pair.client.where.connect(pair.server.addresses[0], APP_PORT) as sock,
    ):
        sock.settimeout(WAITS["traffic"].seconds)
        sock.sendall(b"x" * 10)
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
