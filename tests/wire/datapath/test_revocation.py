"""Peers whose certificate is revoked (istio-facts 2.3): cut off, kept out, counted."""

from __future__ import annotations

import contextlib
import ssl

import pytest

from metalmesh.ztunnel import messages as m
from tests.support import tcp_apps as apps
from tests.support.apps import LongConnection, ask
from tests.support.data_worker import Pair, hbone_client
from tests.support.pki import Credentials
from tests.wire.datapath.conftest import APP_PORT

ERROR = "connection closed: peer certificate revoked by CRL"
REJECTIONS = "istio_crl_policy_rejections_total"


def _status(pair: Pair, credentials: Credentials) -> str:
    """What a client with these credentials is answered."""
    authority = f"{pair.server.addresses[0]}:{APP_PORT}"
    with (
        contextlib.suppress(ConnectionError, ssl.SSLError),
        hbone_client(pair, credentials) as client,
    ):
        return client.connect(authority)[1]
    return "closed"


@pytest.mark.parametrize("link", [0, 1], ids=["leaf", "intermediate"])
def test_revoked_client_loses_its_tunnel_and_gets_no_other(pair: Pair, link: int) -> None:
    """GOAWAY without an error, then the end; whoever is not listed notices nothing."""
    bad = pair.ca.intermediate().leaf(pair.client.identity)
    good = pair.ca.intermediate().leaf(pair.client.identity)
    authority = f"{pair.server.addresses[0]}:{APP_PORT}"
    with (
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        hbone_client(pair, bad) as revoked,
        hbone_client(pair, good) as other,
    ):
        assert revoked.connect(authority)[1] == "200"
        stream, status = other.connect(authority)
        assert status == "200"
        pair.destination.send(m.Revocations(keys=("00" * 16, bad.revocation_keys()[link])))
        assert revoked.wait_goaway() == 0
        assert _status(pair, bad) == "closed"
        assert other.exchange(stream, b"still here") == b"still here"
        assert _status(pair, good) == "200"
    pair.destination.log_line("connection complete", ERROR, 'direction="inbound"')
    pair.destination.log_line("connection failed", ERROR)
    found = pair.destination.metrics()
    assert found[REJECTIONS, "destination", ""] == 2
    assert found["istio_tcp_connections_failed_total", "destination", "CERT_REVOKED"] == 1


def test_nothing_is_revoked_any_more_when_the_list_says_so(pair: Pair) -> None:
    bad = pair.ca.leaf(pair.client.identity)
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
        pair.destination.send(m.Revocations(keys=bad.revocation_keys()))
        assert _status(pair, bad) == "closed"
        pair.destination.send(m.Revocations())
        assert _status(pair, bad) == "200"


def test_revoked_server_is_left_and_not_dialled_again(pair: Pair) -> None:
    """The client's side looks, too."""
    address = pair.server.addresses[0]
    keys = pair.destination.certificates[pair.server.identity].revocation_keys()
    with (
        apps.tcp_app(pair.server.where, APP_PORT, apps.echo),
        LongConnection(pair.client.where, address, APP_PORT) as connection,
    ):
        assert connection.echo(b"x") == b"x"
        pair.source.send(m.Revocations(keys=keys))
        assert connection.wait_closed()
        assert ask(pair.client.where, address, APP_PORT, b"x") == b""
    pair.source.log_line("connection complete", ERROR, 'direction="outbound"')
    found = pair.source.metrics()
    assert found[REJECTIONS, "source", ""] == 2
    assert found["istio_tcp_connections_failed_total", "source", "CERT_REVOKED"] == 2
