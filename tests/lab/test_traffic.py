"""An unmodified TCP exchange between workloads crosses the link as HBONE over mTLS."""

from __future__ import annotations

import dataclasses
import re

import pytest

from metalmesh.constants import TABLE_NAT
from tests.lab.cast import APP_PORT, Cast, veth_of
from tests.support.apps import ask, new_marker
from tests.support.capture import Capture, Link, Recorder
from tests.support.claims import Claim, Exchange, assert_claims, claims
from tests.support.mesh import NODE_AGENT, Mesh, Workload
from tests.support.waits import WAITS, wait_until


def exchange_between(client: Workload, server: Workload, marker: bytes) -> Exchange:
    """What the claims are about."""
    return Exchange(
        client_address=client.address,
        client_identity=client.identity,
        server_address=server.address,
        server_identity=server.identity,
        port=APP_PORT,
        marker=marker,
    )


def recorded(
    mesh: Mesh, record: Recorder, link: Link, client: Workload, server: Workload
) -> tuple[Capture, Exchange]:
    """One exchange over a new tunnel, recorded from its first SYN on."""
    mesh.drop_tunnels(client)
    marker = new_marker()
    with record(link, f"host {server.address}") as recording:
        answer = ask(client.netns, server.address, APP_PORT, marker)
    assert answer == marker, f"{client.name} -> {server.name}: no echo but {answer!r}"
    return recording, exchange_between(client, server, marker)


def refuted(found: list[Claim]) -> set[str]:
    """First words of the claims that do not hold."""
    return {" ".join(claim.text.split()[:2]) for claim in found if not claim.holds}


def test_traffic_between_nodes_is_hbone(
    mesh: Mesh, cast: Cast, node_link: Link, record: Recorder
) -> None:
    """Only 15008, TLS 1.3, both identities, CONNECT, nothing in clear (issue: Proof)."""
    recording, exchange = recorded(mesh, record, node_link, cast.client, cast.server)
    assert_claims(recording, mesh.keylog(), exchange)


def test_traffic_on_one_node_is_hbone(mesh: Mesh, cast: Cast, record: Recorder) -> None:
    """There is no shortcut for neighbours: their veths carry HBONE, too."""
    link = veth_of(cast.client)
    recording, exchange = recorded(mesh, record, link, cast.peer, cast.client)
    assert_claims(recording, mesh.keylog(), exchange)


def test_ipv6_traffic_is_hbone(mesh: Mesh, cast: Cast, record: Recorder) -> None:
    """The other family: captured, tunnelled and delivered with its source just the same."""
    client, server = cast.peer, cast.client
    mesh.drop_tunnels(client)
    seen = cast.callers[server.name]
    del seen[:]
    marker = new_marker()
    with record(veth_of(server), f"host {server.address_v6}") as recording:
        assert ask(client.netns, server.address_v6, APP_PORT, marker) == marker
    assert seen == [client.address_v6]
    told = exchange_between(client, server, marker)
    v6 = {"client_address": client.address_v6, "server_address": server.address_v6}
    assert_claims(recording, mesh.keylog(), dataclasses.replace(told, **v6))


def test_ipv6_outside_of_the_mesh_is_plaintext(mesh: Mesh, cast: Cast, record: Recorder) -> None:
    """Negative twin of the other family."""
    server = cast.client
    marker = new_marker()
    with record(veth_of(server), f"host {server.address_v6}") as recording:
        assert ask(cast.plain.netns, server.address_v6, APP_PORT, marker) == marker
    assert recording.plaintext_contains(marker)
    assert recording.ports_between({cast.plain.address_v6}, {server.address_v6}) == {"tcp/8080"}


def test_workload_outside_of_the_mesh_sends_plaintext(
    mesh: Mesh, cast: Cast, node_link: Link, record: Recorder
) -> None:
    """Negative twin: dataplane mode none, and every claim about the wire fails."""
    recording, exchange = recorded(mesh, record, node_link, cast.plain, cast.server)
    assert refuted(claims(recording, mesh.keylog(), exchange)) == {
        "between " + cast.plain.address,
        "the marker",
    }


def test_without_redirection_traffic_is_plaintext_until_it_is_repaired(
    mesh: Mesh, cast: Cast, node_link: Link, record: Recorder
) -> None:
    """Negative twin: the claims hold because of the rules, and the node agent restores them."""
    client = cast.client
    client.node.sh(f"systemctl stop {NODE_AGENT}")
    try:
        client.netns.run("nft", "delete", "table", "inet", TABLE_NAT)
        recording, exchange = recorded(mesh, record, node_link, client, cast.server)
        assert recording.plaintext_contains(exchange.marker)
        assert "the marker" in refuted(claims(recording, mesh.keylog(), exchange))
    finally:
        client.node.sh(f"systemctl start {NODE_AGENT}")
    wait_until(
        lambda: TABLE_NAT in client.netns.run("nft", "list", "tables"),
        WAITS["drift"],
        what="redirection restored after the node agent started",
    )
    recording, exchange = recorded(mesh, record, node_link, client, cast.server)
    assert_claims(recording, mesh.keylog(), exchange)


NFT_TABLE = f"table inet {TABLE_NAT}"
NFT_CHAIN = f"chain inet {TABLE_NAT} istio-output"


@pytest.mark.parametrize(
    ("break_it", "show"),
    [
        (f"nft delete {NFT_TABLE}", f"nft list {NFT_TABLE}"),
        (f"nft flush {NFT_CHAIN}", f"nft list {NFT_CHAIN}"),
        ("ip rule del pref 32764", "ip rule show pref 32764"),
        ("ip route del local 0.0.0.0/0 dev lo table 100", "ip route show table 100"),
    ],
    ids=["table deleted", "chain flushed", "rule deleted", "route deleted"],
)
def test_drift_is_repaired(cast: Cast, break_it: str, show: str) -> None:
    """What somebody removed from a workload's namespace comes back by itself."""
    netns = cast.client.netns
    before = _without_counters(netns.run(*show.split()))
    netns.run(*break_it.split())

    def restored() -> bool:
        try:
            return _without_counters(netns.run(*show.split())) == before
        except RuntimeError:  # the object is not there yet
            return False

    wait_until(restored, WAITS["drift"], what=f"{break_it} undone")
    assert ask(netns, cast.server.address, APP_PORT, b"again") == b"again"


def _without_counters(text: str) -> list[str]:
    return [re.sub(r"packets \d+ bytes \d+", "", line).strip() for line in text.splitlines()]


def test_source_address_is_preserved(cast: Cast) -> None:
    """The application sees its client, not a proxy."""
    for client, server in ((cast.client, cast.server), (cast.peer, cast.client)):
        seen = cast.callers[server.name]
        del seen[:]
        assert ask(client.netns, server.address, APP_PORT, b"who am I") == b"who am I"
        assert seen == [client.address]


def test_own_address_is_not_captured(cast: Cast) -> None:
    """An application that calls itself by its own address never leaves its namespace."""
    client = cast.client
    before = cast.callers[client.name][:]
    assert ask(client.netns, client.address, APP_PORT, b"me") == b"me"
    assert cast.callers[client.name] == [*before, client.address]


def test_access_log_and_metrics_tell_the_exchange(mesh: Mesh, cast: Cast) -> None:
    """Both ends write one line and count one connection, with Istio's names (facts 8.1, 8.2)."""
    client, server = cast.client, cast.server
    logs = {"outbound": mesh.access_log(client.node), "inbound": mesh.access_log(server.node)}
    reporters = {"source": client.node, "destination": server.node}
    labels = {
        "source_principal": client.identity,
        "destination_principal": server.identity,
        "source_workload_namespace": client.namespace,
        "connection_security_policy": "mutual_tls",
        "request_protocol": "tcp",
        "response_flags": "-",
    }

    def closed(reporter: str) -> float:
        return mesh.metric(
            reporters[reporter], "istio_tcp_connections_closed_total", reporter=reporter, **labels
        )

    before = {reporter: closed(reporter) for reporter in reporters}
    marker = new_marker()
    assert ask(client.netns, server.address, APP_PORT, marker) == marker
    for direction, log in logs.items():
        line = log.wait("connection complete", f'direction="{direction}"', client.address)
        for field in (
            f"src.addr={client.address}:",
            f"dst.addr={server.address}:15008",
            f"dst.hbone_addr={server.address}:{APP_PORT}",
            f'src.identity="{client.identity}"',
            f'dst.identity="{server.identity}"',
            f"bytes_sent={len(marker)}",
            f"bytes_recv={len(marker)}",
        ):
            assert field in line, f"{direction}: no {field} in {line}"
    for reporter, count in before.items():
        wait_until(
            lambda reporter=reporter, count=count: closed(reporter) == count + 1,
            WAITS["metric"],
            what=f"one more closed connection told by {reporter}",
        )
