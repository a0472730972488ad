"""Names and virtual addresses of services, for clients in the mesh and for others."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.dns import DNS, DNSQR

from metalmesh.constants import PROBE_SNAT_IPV4
from tests.lab.cast import APP_PORT, NAMESPACE, Cast
from tests.lab.policies import peer_authentication
from tests.support.apps import ask, new_marker
from tests.support.capture import Link, Recorder
from tests.support.mesh import Mesh, Resource
from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until

VIRTUAL_ADDRESS = "10.96.200.10"
PORT = 80
HOSTNAME = f"back.{NAMESPACE}.svc.cluster.local"
SERVICE: Resource = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "back", "namespace": NAMESPACE},
    "spec": {
        "clusterIP": VIRTUAL_ADDRESS,
        "selector": {"tier": "back"},
        "ports": [{"name": "tcp", "port": PORT, "targetPort": APP_PORT}],
    },
}


@pytest.fixture
def service(mesh: Mesh, cast: Cast) -> Iterator[str]:
    """A service of both workloads on node2, known to everybody."""
    clients = (cast.client.netns, cast.plain.netns)
    with mesh.applied(SERVICE):
        for client in clients:
            wait_until(
                lambda client=client: ask(client, VIRTUAL_ADDRESS, PORT, b"x") == b"x",
                WAITS["policy"],
                what="the service known",
            )
        yield VIRTUAL_ADDRESS


def query(where: Netns, server: str, name: str, kind: str = "A") -> DNS:
    """One DNS question over UDP."""
    question = bytes(DNS(id=7, rd=1, qd=DNSQR(qname=name, qtype=kind)))

    def exchange() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(WAITS["traffic"].seconds)
            udp.sendto(question, (server, 53))
            return udp.recv(4096)

    return DNS(where.do(exchange))


def test_service_address_reaches_its_endpoints_as_hbone(
    mesh: Mesh, cast: Cast, service: str, node_link: Link, record: Recorder
) -> None:
    """A connection to the virtual address is HBONE to one of the endpoints, each gets its share."""
    endpoints = {cast.server.address, cast.other.address}
    for seen in (cast.callers["server"], cast.callers["other"]):
        del seen[:]
    marker = new_marker()
    log = mesh.access_log(cast.client.node)
    with record(node_link, f"host {cast.client.address}") as recording:
        for _ in range(24):
            assert ask(cast.client.netns, service, PORT, marker) == marker
    assert recording.ports_between({cast.client.address}, endpoints) == {"tcp/15008"}
    assert not recording.between({cast.client.address}, {service})
    assert not recording.plaintext_contains(marker)
    assert set(cast.callers["server"]) == set(cast.callers["other"]) == {cast.client.address}
    log.wait('direction="outbound"', f'dst.service="{HOSTNAME}"')


def test_service_address_works_outside_of_the_mesh(cast: Cast, service: str) -> None:
    """An uncaptured workload and the node itself reach it through the node's own rules."""
    marker = new_marker()
    assert ask(cast.plain.netns, service, PORT, marker) == marker
    assert ask(cast.plain.node.netns, service, PORT, marker) == marker


def test_names_are_answered_on_the_node(mesh: Mesh, cast: Cast, service: str) -> None:
    """Every workload finds the service by its full name; nonsense does not exist."""
    server = cast.client.node.config("node").get("dns_address", "169.254.20.10")
    for client in (cast.client, cast.plain):
        wait_until(
            lambda client=client: (
                [record.rdata for record in query(client.netns, server, HOSTNAME).an]
                == [VIRTUAL_ADDRESS]
            ),
            WAITS["policy"],
            what=f"{HOSTNAME} answered to {client.name}",
        )
    missing = query(cast.client.netns, server, f"nothing.{NAMESPACE}.svc.cluster.local")
    assert (missing.rcode, missing.ancount) == (3, 0)


def test_names_are_captured(cast: Cast, service: str) -> None:
    """Whoever a workload asks, its own proxy answers; outside of the mesh nobody is there."""
    nowhere = "203.0.113.53"
    wait_until(
        lambda: (
            [record.rdata for record in query(cast.client.netns, nowhere, HOSTNAME).an]
            == [VIRTUAL_ADDRESS]
        ),
        WAITS["policy"],
        what="the proxy's answer",
    )
    with pytest.raises(OSError):
        query(cast.plain.netns, nowhere, HOSTNAME)


def test_probes_of_the_node_need_no_identity(mesh: Mesh, cast: Cast) -> None:
    """A health check of the node is served under STRICT; other machines' plaintext is not."""
    address = cast.client.address
    (outside, *_) = mesh.external
    with mesh.applied(peer_authentication("STRICT")):
        for stranger in (outside, cast.server.node):
            wait_until(
                lambda stranger=stranger: ask(stranger.netns, address, APP_PORT, b"x") == b"",
                WAITS["policy"],
                what=f"{stranger.name} refused",
            )
        seen = cast.callers["client"]
        del seen[:]
        assert ask(cast.client.node.netns, address, APP_PORT, b"alive?") == b"alive?"
        assert seen == [PROBE_SNAT_IPV4]


def test_service_entry_is_found_by_name_and_reached_over_both_families(
    mesh: Mesh, cast: Cast
) -> None:
    """Names of its own, addresses of the mesh's choice, the workloads it selects.

    On one node, since the lab's links have no routes for IPv6 of workloads.
    """
    client, server = cast.peer, cast.client
    host = f"back.{NAMESPACE}.example.com"
    entry = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "back", "namespace": NAMESPACE},
        "spec": {
            "hosts": [host],
            "resolution": "STATIC",
            "workloadSelector": {"labels": {"app": server.name}},
            "ports": [{"number": PORT, "name": "tcp", "targetPort": APP_PORT}],
        },
    }
    log = mesh.access_log(client.node)

    def addresses() -> list[str]:
        found = [query(client.netns, "203.0.113.53", host, kind) for kind in ("A", "AAAA")]
        return [str(record.rdata) for answer in found for record in answer.an]

    with mesh.applied(entry):
        wait_until(addresses, WAITS["policy"], what=f"{host} answered")
        one, other = addresses()
        assert one.startswith("240.240.")
        assert other.startswith("2001:2:")
        for address in (one, other):
            wait_until(
                lambda address=address: ask(client.netns, address, PORT, b"x") == b"x",
                WAITS["policy"],
                what=f"an answer of {address}",
            )
    tunnelled = f"dst.hbone_addr=[{server.address_v6}]:{APP_PORT}"
    log.wait('direction="outbound"', tunnelled, f'dst.service="{host}"')
