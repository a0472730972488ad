"""Policy at the destination: through the tunnel and in plaintext, at first and while open."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network

import pytest

from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    StringMatch,
)
from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from metalmesh.policy.network_policy import network_policy_to_dict
from metalmesh.ztunnel import messages as m
from tests.support import tcp_apps as apps
from tests.support.data_worker import Pair, dial_uncaptured, hbone_client
from tests.support.waits import WAITS, wait_until
from tests.wire.datapath.conftest import APP_PORT

ANYONE = StringMatch(MatchKind.PRESENCE)


def authorization(action: Action, match: Match, name: str = "p") -> dict[str, object]:
    """A policy of one rule with one match."""
    return Authorization(
        name=name,
        namespace="test",
        scope=PolicyScope.NAMESPACE,
        action=action,
        rules=(((match,),),),
    ).to_dict()


def principal(identity: str) -> Match:
    """Matches one identity."""
    value = identity.removeprefix("spiffe://")
    return Match(principals=(StringMatch(MatchKind.EXACT, value),))


STRICT = authorization(Action.DENY, Match(not_principals=(ANYONE,)), "strict")


def network_policy(pair: Pair, source: str, port: int) -> dict[str, object]:
    """Admits one source to one port of the server."""
    policy = CompiledNetworkPolicy(
        name="np",
        namespace="test",
        selected=(SelectedWorkload(pair.server.uid, (ip_address(pair.server.addresses[0]),)),),
        ingress=True,
        egress=False,
        ingress_rules=(PolicyRule((Peer(ip_network(source)),), (PolicyPort(Protocol.TCP, port),)),),
    )
    return network_policy_to_dict(policy)


def tunneled_works(pair: Pair) -> bool:
    """Whether a captured connection of the client is served."""
    try:
        return apps.echo_through(pair.client.where, pair.server.addresses[0], APP_PORT, 100)
    except ConnectionError:
        return False


def plaintext_works(pair: Pair) -> bool:
    """Whether a connection without a tunnel is served."""
    try:
        with dial_uncaptured(pair.client.where, pair.server.addresses[0], APP_PORT) as sock:
            sock.sendall(b"plain")
            sock.shutdown(socket.SHUT_WR)
            return apps.read_all(sock) == b"plain"
    except OSError:  # reset, or reset before it could shut down
        return False


def test_policies_decide_tunneled_and_plaintext_connections(pair: Pair) -> None:
    """ALLOW and DENY by identity; STRICT refuses whoever has none."""
    server, client = pair.server, pair.client
    allow_client = authorization(Action.ALLOW, principal(client.identity))
    allow_other = authorization(Action.ALLOW, principal(server.identity))
    deny_client = authorization(Action.DENY, principal(client.identity))
    deny_port = authorization(Action.DENY, Match(destination_ports=(APP_PORT,)))
    with apps.tcp_app(server.where, APP_PORT, apps.echo):
        for policies, tunneled, plain in (
            ((), True, True),
            ((STRICT,), True, False),
            ((allow_client,), True, False),
            ((allow_other,), False, False),
            ((allow_client, deny_client), False, False),
            ((deny_client,), False, True),
            ((deny_port,), False, False),
        ):
            pair.destination.policies(server, *policies)
            assert (tunneled_works(pair), plaintext_works(pair)) == (tunneled, plain), policies


def test_denied_connection_is_401_and_says_which_policy(pair: Pair) -> None:
    """Status 401, not 403; the log and the metrics of both sides tell."""
    deny = authorization(Action.DENY, principal(pair.client.identity), "no-clients")
    pair.destination.policies(pair.server, deny)
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo):
        with hbone_client(pair) as client:
            assert client.connect(f"{pair.server.addresses[0]}:{APP_PORT}")[1] == "401"
        assert not tunneled_works(pair)
    assert "http status: 401 Unauthorized" in pair.source.log_line('direction="outbound"', "error=")
    line = pair.destination.log_line('direction="inbound"', "error=")
    text = "connection closed due to policy rejection: explicitly denied by: test/no-clients"
    assert f'error="{text}"' in line
    metrics = pair.destination.metrics()
    assert metrics["istio_tcp_connections_failed_total", "destination", "DENY"] == 2
    assert metrics["istio_tcp_connections_opened_total", "destination", "-"] == 2


def test_open_connections_are_closed_when_policies_change(pair: Pair) -> None:
    """Denied ones at once, whether tunneled or plaintext; the others do not notice."""
    server = pair.server
    with apps.tcp_app(server.where, APP_PORT, apps.echo):
        pair.route(APP_PORT)
        tunneled = pair.client.where.connect(server.addresses[0], APP_PORT)
        plain = dial_uncaptured(pair.client.where, server.addresses[0], APP_PORT)
        with tunneled, plain:
            for sock in (tunneled, plain):
                sock.settimeout(WAITS["traffic"].seconds)
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            pair.destination.policies(server, STRICT)
            with pytest.raises(ConnectionResetError):
                plain.recv(1)
            tunneled.sendall(b"y")
            assert tunneled.recv(1) == b"y"
            deny = authorization(Action.DENY, principal(pair.client.identity))
            pair.destination.policies(server, deny)
            with pytest.raises(ConnectionResetError):
                tunneled.recv(1)
    pair.destination.log_line('error="connection closed due to policy change"', "src.identity=")
    pair.destination.log_line("connection closed because it's no longer allowed after a policy")
    pair.destination.log_line(
        "debug\trbac\texplicitly denied by: test/p", "dst.addr=198.18.0.2:8080"
    )
    metrics = pair.destination.metrics()
    assert metrics["istio_tcp_connections_failed_total", "destination", "DENY"] == 2


def test_network_policy_holds_on_inner_ports(pair: Pair) -> None:
    """Packet rules see 15008 only; the inner port is checked behind the tunnel."""
    server, client = pair.server, pair.client
    right = network_policy(pair, f"{client.addresses[0]}/32", APP_PORT)
    wrong_port = network_policy(pair, f"{client.addresses[0]}/32", APP_PORT + 1)
    wrong_source = network_policy(pair, "192.0.2.0/24", APP_PORT)
    with apps.tcp_app(server.where, APP_PORT, apps.echo):
        for policy, enforced, works in (
            (right, True, True),
            (wrong_port, True, False),
            (wrong_source, True, False),
            (wrong_port, False, True),
        ):
            pair.destination.policies(
                server, network_policies=(policy,), inner_enforcement=enforced
            )
            assert tunneled_works(pair) is works
            assert plaintext_works(pair)  # the node's packet rules decide this one
    text = "no ingress rule of NetworkPolicy test/np admits tcp/8080 from 198.18.0.1"
    pair.destination.log_line(f'error="connection closed due to policy rejection: {text}"')
    flag = ("istio_tcp_connections_failed_total", "destination", "NETWORK_POLICY")
    assert pair.destination.metrics()[flag] == 2


def test_connections_wait_for_missing_policies(pair: Pair) -> None:
    """A policy that is listed but not here holds new connections back until it comes."""
    server = pair.server
    pair.destination.policies(server, missing=("test/late",))
    with apps.tcp_app(server.where, APP_PORT, apps.echo) as callers:
        sock = pair.client.where.connect(server.addresses[0], APP_PORT)
        with sock, dial_uncaptured(pair.client.where, server.addresses[0], APP_PORT) as plain:
            for waiting in (sock, plain):
                waiting.settimeout(WAITS["traffic"].seconds)
                waiting.sendall(b"x")
            opened = "istio_tcp_connections_opened_total", "destination", "-"
            wait_until(lambda: pair.destination.metrics().get(opened) == 2, WAITS["metric"])
            assert callers == []
            pair.destination.policies(server)
            assert [sock.recv(1), plain.recv(1)] == [b"x", b"x"]


def test_missing_policies_deny_in_the_end(pair: Pair) -> None:
    """Fail closed: after 5 s the connection is refused, not let through."""
    pair.destination.policies(pair.server, missing=("test/late",))
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo) as callers:
        assert not tunneled_works(pair)
    assert callers == []
    assert "http status: 401" in pair.source.log_line('direction="outbound"', "error=")
    pair.destination.log_line("policy not known yet: test/late")


def test_workload_without_policies_serves_nobody(pair: Pair) -> None:
    """The control plane has not spoken: nothing is served, in a tunnel or without."""
    pair.destination.send(m.RemoveWorkload(uid=pair.server.uid))
    pair.destination.add(pair.server)
    with apps.tcp_app(pair.server.where, APP_PORT, apps.echo) as callers:
        assert not tunneled_works(pair)
        assert not plaintext_works(pair)
    assert callers == []
    assert "http status: 503" in pair.source.log_line('direction="outbound"', "error=")
    pair.destination.log_line("failed to fetch information about local workload: server.test")
