"""An endpoint that does not accept is not the end: the next one is tried, unless it must not be.

Endpoints of great weight are practically always tried first.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from metalmesh.model.authorization import Action, Authorization, Match, PolicyScope
from metalmesh.ztunnel import messages as m
from tests.support import tcp_apps as apps
from tests.support.data_worker import Pair
from tests.support.peers import HboneServer
from tests.support.waits import WAITS, wait_until

PORT, CLOSED, SILENT = 8080, 8999, 8998
VIP = "192.0.2.50"
FIRST = 1 << 40
RETRIES, EJECTIONS, EJECTED = (
    (f"metalmesh_outbound_{name}", "", "")
    for name in ("retries_total", "ejections_total", "ejected_endpoints")
)


def plain(pair: Pair, port: int, weight: int = 1) -> m.Endpoint:
    return m.Endpoint(address=f"{pair.server.addresses[0]}:{port}", weight=weight)


def closed(pair: Pair, port: int = CLOSED, weight: int = FIRST) -> m.Endpoint:
    """Where the kernel refuses: the server's own proxy would accept first."""
    return m.Endpoint(address=f"{pair.client.addresses[0]}:{port}", weight=weight)


def silence(pair: Pair) -> None:
    """Have the server drop what comes to one port."""
    hook = "{ type filter hook prerouting priority -400; }"
    for command in (
        "add table inet silent",
        f"add chain inet silent input {hook}",
        f"add rule inet silent input tcp dport {SILENT} drop",
    ):
        pair.server.where.run("nft", command)


def offer(pair: Pair, *endpoints: m.Endpoint, vip: str = VIP) -> None:
    """Have the client reach these endpoints at a virtual address."""
    kinds = {"hbone" if item.authority else "tcp" for item in endpoints}
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    pair.source.routes[vip, 80] = m.Route(kind=kind, endpoints=endpoints)
    pair.source.send(m.InvalidateRoutes())
    pair.client.where.run("ip", "route", "replace", f"{vip}/32", "dev", "eth0")


def works(pair: Pair) -> bool:
    return apps.echo_through(pair.client.where, VIP, 80, 100_000)


def refused(pair: Pair) -> bool:
    """Whether the application's connection was reset, and not ended as if all were well."""
    try:
        with pair.client.where.connect(VIP, 80) as sock:
            sock.settimeout(WAITS["refused"].seconds)
            sock.sendall(b"x")
            sock.recv(1)
            return False
    except (ConnectionResetError, BrokenPipeError):
        return True


@contextlib.contextmanager
def rude_listener(pair: Pair, port: int) -> Iterator[None]:
    """Accepts and hangs up: no TLS there."""

    def hang_up(peer: socket.socket) -> None:
        peer.close()

    with apps.tcp_app(pair.server.where, port, hang_up):
        yield


@pytest.mark.parametrize("kind", ["plain", "tcp", "tls", "connect", "mixed"])
def test_next_endpoint_is_tried_when_one_does_not_accept(pair: Pair, kind: str) -> None:
    """Refused, no TLS, or 503 from the other ztunnel; the bytes arrive once."""
    address = pair.server.addresses[0]
    first = {
        "plain": closed(pair),
        "tcp": pair.server.endpoint(PORT, address=closed(pair).address, weight=FIRST),
        "tls": pair.server.endpoint(PORT, address=f"{address}:{PORT + 1}", weight=FIRST),
        "connect": pair.server.endpoint(CLOSED, weight=FIRST),
        "mixed": closed(pair),
    }[kind]
    second = plain(pair, PORT) if kind == "plain" else pair.server.endpoint(PORT)
    offer(pair, first, second)
    with (
        rude_listener(pair, PORT + 1),
        apps.tcp_app(pair.server.where, PORT, apps.echo) as callers,
    ):
        assert works(pair)
    assert len(callers) == 1
    assert pair.source.metrics()[RETRIES] == 1
    pair.source.log_line("warn", "connection attempt failed", f"dst.addr={first.address}")
    assert "error=" not in pair.source.log_line(
        "info", "connection complete", f"dst.addr={second.address}"
    )
    counted = pair.source.metrics()
    assert (
        counted["istio_tcp_connections_failed_total", "source", "CONNECT"]
        + counted.get(("istio_tcp_connections_failed_total", "source", "TLS_FAILURE"), 0)
        == 1
        if kind != "tls"
        else True
    )


def test_silent_endpoint_costs_a_part_of_the_connect_timeout(pair: Pair) -> None:
    silence(pair)
    address = pair.server.addresses[0]
    offer(
        pair,
        pair.server.endpoint(PORT, address=f"{address}:{SILENT}", weight=FIRST),
        pair.server.endpoint(PORT),
    )
    with apps.tcp_app(pair.server.where, PORT, apps.echo):
        assert works(pair)
    line = pair.source.log_line("connection attempt failed")
    assert "connection timed out: no answer within 3.3 s" in line


class Mute(HboneServer):
    """Speaks TLS and HTTP/2, and answers no request."""

    @staticmethod
    def _talk(peer: ssl.SSLSocket) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        peer.sendall(connection.data_to_send())
        while data := peer.recv(65536):
            connection.receive_data(data)
            peer.sendall(connection.data_to_send())


def test_endpoint_that_answers_no_connect_is_left_in_time(pair: Pair) -> None:
    """A machine that died behind an open tunnel looks like that, until its PING is missed."""
    address = pair.server.addresses[0]
    context = pair.ca.leaf(pair.server.identity).context(ssl.PROTOCOL_TLS_SERVER)
    listener = pair.server.where.do(lambda: socket.create_server(("0.0.0.0", PORT + 1)))
    mute = pair.server.endpoint(PORT, address=f"{address}:{PORT + 1}", weight=FIRST)
    offer(pair, mute, pair.server.endpoint(PORT))
    with Mute(listener, context), apps.tcp_app(pair.server.where, PORT, apps.echo) as callers:
        assert works(pair)
        pair.source.send(m.RemoveWorkload(uid=pair.client.uid))  # closes its tunnels
    assert len(callers) == 1
    line = pair.source.log_line("connection attempt failed", f"dst.addr={address}:{PORT + 1}")
    assert "no answer within 3.3 s" in line


def test_policy_is_not_asked_twice(pair: Pair) -> None:
    """Negative twin: 401 is an answer. The other endpoint would have admitted us."""
    deny = Authorization(
        name="deny",
        namespace="test",
        scope=PolicyScope.NAMESPACE,
        action=Action.DENY,
        rules=(((Match(destination_ports=(PORT,)),),),),
    )
    pair.destination.policies(pair.server, deny.to_dict())
    with (
        apps.tcp_app(pair.server.where, PORT, apps.echo) as denied,
        apps.tcp_app(pair.server.where, PORT + 1, apps.echo) as other,
    ):
        offer(pair, pair.server.endpoint(PORT))
        wait_until(lambda: refused(pair), WAITS["policy"], what="the policy in force")
        denied.clear()
        offer(pair, pair.server.endpoint(PORT, weight=FIRST), pair.server.endpoint(PORT + 1))
        assert refused(pair)
    assert denied + other == []
    pair.source.log_line("http status: 401 Unauthorized")
    assert pair.source.metrics()[RETRIES] == 0


def test_wrong_identity_is_not_passed_over(pair: Pair) -> None:
    """Somebody is where a workload should be: that must stay visible."""
    impostor = pair.server.endpoint(
        PORT, identities=("spiffe://cluster.local/ns/test/sa/other",), weight=FIRST
    )
    offer(pair, impostor, pair.server.endpoint(PORT))
    with apps.tcp_app(pair.server.where, PORT, apps.echo) as callers:
        assert refused(pair)
    assert callers == []
    pair.source.log_line("identity verification error")
    assert pair.source.metrics()[RETRIES] == 0


def test_application_is_reset_when_no_endpoint_accepts(pair: Pair) -> None:
    """Not closed in good order, which looks like an empty answer."""
    offer(pair, *(closed(pair, CLOSED - number) for number in range(2, 8)))
    assert refused(pair)
    line = pair.source.log_line("error", "connection complete", "Connection refused")
    assert "bytes_sent=0" in line
    assert pair.source.metrics()[RETRIES] == 2


def test_endpoint_that_keeps_failing_is_left_out(pair: Pair) -> None:
    """After five failures in a row; the application notices nothing all the while."""
    offer(pair, closed(pair), plain(pair, PORT))
    with apps.tcp_app(pair.server.where, PORT, apps.echo):
        for _ in range(8):
            assert works(pair)
    line = pair.source.log_line("warn", "endpoint ejected")
    assert f'dst.addr={closed(pair).address} seconds=30 error="connection' in line
    counted = pair.source.metrics()
    assert (counted[RETRIES], counted[EJECTIONS], counted[EJECTED]) == (5, 1, 1)


def test_only_endpoint_is_never_left_out(pair: Pair) -> None:
    """Negative twin: it serves again as soon as it accepts again."""
    offer(pair, pair.server.endpoint(PORT))
    for _ in range(7):
        assert refused(pair)
    with apps.tcp_app(pair.server.where, PORT, apps.echo):
        assert works(pair)
    counted = pair.source.metrics()
    assert (counted[RETRIES], counted[EJECTIONS], counted[EJECTED]) == (0, 0, 0)


def test_removed_workload_ends_its_attempts(pair: Pair) -> None:
    """Nothing is left of a connection that was still looking for an endpoint."""
    silence(pair)
    silent = f"{pair.server.addresses[0]}:{SILENT}"
    offer(pair, *(pair.server.endpoint(port, address=silent) for port in (PORT, PORT + 1)))
    with pair.client.where.connect(VIP, 80) as sock:
        pair.source.send(m.RemoveWorkload(uid=pair.client.uid))
        sock.settimeout(WAITS["traffic"].seconds)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    wait_until(
        lambda: pair.source.metrics()["istio_tcp_sockets_open", "source", ""] == 0,
        WAITS["metric"],
    )
