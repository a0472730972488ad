"""The same over IPv6: original destinations, brackets, transparent sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from metalmesh.ztunnel import messages as m
from tests.support import tcp_apps as apps
from tests.support.data_worker import FakeMain, Member, capture_traffic
from tests.support.netns import netns_pair
from tests.support.pki import CertificateAuthority

PORT = 8080
ADDRESSES = ("fd00:77::1", "fd00:77::2")


@pytest.fixture
def members() -> Iterator[tuple[Member, Member, FakeMain, FakeMain]]:
    """Two captured workloads that have IPv6 addresses only, as far as the mesh knows."""
    ca = CertificateAuthority()
    with netns_pair() as wheres, FakeMain() as source, FakeMain() as destination:
        found = []
        pairs = zip(wheres, ADDRESSES, (source, destination), ("client", "server"), strict=True)
        for where, address, main, name in pairs:
            add = ("ip", "-6", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
            where.run(*add)
            capture_traffic(where, ipv6=True)
            identity = f"spiffe://cluster.local/ns/test/sa/{name}"
            member = Member(where, name, identity, (address,))
            main.certificates[identity] = ca.leaf(identity)
            main.add(member)
            main.policies(member)
            found.append(member)
        yield found[0], found[1], source, destination


def test_tunnel_over_ipv6_preserves_the_source(members) -> None:
    """Authority and addresses in brackets, the client's own address at the application."""
    client, server, source, destination = members
    address = server.addresses[0]
    endpoint = replace(
        server.endpoint(PORT), address=f"[{address}]:15008", authority=f"[{address}]:{PORT}"
    )
    source.routes[address, PORT] = m.Route(kind="hbone", endpoints=(endpoint,))
    with apps.tcp_app(server.where, PORT, apps.echo, address="::") as callers:
        assert apps.echo_through(client.where, address, PORT, 1_000_000)
    assert callers == [client.addresses[0]]
    line = destination.log_line("connection complete")
    assert f"src.addr=[{client.addresses[0]}]:" in line
    assert f"dst.addr=[{address}]:15008 dst.hbone_addr=[{address}]:{PORT}" in line


def test_plaintext_over_ipv6_preserves_the_source(members) -> None:
    """Passed through at the client, captured at the server."""
    client, server, _, destination = members
    with apps.tcp_app(server.where, PORT, apps.echo, address="::") as callers:
        assert apps.echo_through(client.where, server.addresses[0], PORT, 1_000_000)
    assert callers == [client.addresses[0]]
    destination.log_line("connection complete", f"dst.addr=[{server.addresses[0]}]:{PORT}")


def test_service_address_leads_to_the_next_endpoint_over_ipv6(members) -> None:
    """Virtual address, endpoints and what is logged of both attempts, in brackets."""
    client, server, source, destination = members
    (own,), (address,) = client.addresses, server.addresses
    live = replace(
        server.endpoint(PORT), address=f"[{address}]:15008", authority=f"[{address}]:{PORT}"
    )
    closed = m.Endpoint(address=f"[{own}]:{PORT + 1}", weight=1 << 40)
    source.routes["fd00:99::1", 80] = m.Route(kind="mixed", endpoints=(closed, live))
    client.where.run("ip", "-6", "route", "replace", "fd00:99::1/128", "dev", "eth0")
    with apps.tcp_app(server.where, PORT, apps.echo, address="::") as callers:
        assert apps.echo_through(client.where, "fd00:99::1", 80, 100_000)
    assert callers == [own]
    source.log_line("connection attempt failed", f"dst.addr=[{own}]:{PORT + 1}")
    line = source.log_line("connection complete", f"dst.addr=[{address}]:15008")
    assert f"dst.hbone_addr=[{address}]:{PORT}" in line
    destination.log_line("connection complete", f"src.addr=[{own}]:")
