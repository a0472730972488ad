"""A service in a machine's own namespace is in the mesh, and the machine stays within reach."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest

from metalmesh.constants import ANNOTATION_EXCLUDE_INBOUND_PORTS, TABLE_HOST_NAT
from tests.lab.cast import APP_PORT, NAMESPACE, OTHER_PORT, Cast
from tests.lab.policies import peer_authentication
from tests.lab.test_traffic import exchange_between
from tests.support.apps import EchoApp, ask, echo_app, new_marker
from tests.support.capture import Link, Recorder
from tests.support.claims import assert_claims
from tests.support.mesh import ZTUNNEL, Mesh, Workload
from tests.support.waits import WAITS, wait_until


@dataclasses.dataclass
class Hosts:
    """A host workload on either node, serving on both ports; node2's leaves one uncaptured."""

    client: Workload
    server: Workload
    app: EchoApp
    service: str


def on_host(mesh: Mesh, node: str, name: str, **annotations: str) -> Workload:
    machine = mesh.machines[node]
    return Workload(
        node=machine,
        namespace=NAMESPACE,
        name=name,
        account=name,
        address=machine.address,
        trust_domain=mesh.settings["trust_domain"],
        on_host=True,
        annotations=annotations,
    )


@pytest.fixture(scope="module")
def hosts(mesh: Mesh, cast: Cast) -> Iterator[Hosts]:
    client = on_host(mesh, "node1", "metal-client")
    server = on_host(mesh, "node2", "metal", **{ANNOTATION_EXCLUDE_INBOUND_PORTS: str(OTHER_PORT)})
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "server-vip", "namespace": NAMESPACE},
        "spec": {
            "clusterIP": "10.96.77.1",
            "selector": {"app": cast.server.name},
            "ports": [{"port": 80, "targetPort": APP_PORT}],
        },
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mesh.applied(service))
        for workload in (client, server):
            stack.callback(mesh.remove_workload, workload)
            mesh.add_workload(workload)
        app = stack.enter_context(echo_app(server.netns, APP_PORT))
        stack.enter_context(echo_app(server.netns, OTHER_PORT))
        found = Hosts(client, server, app, "10.96.77.1")
        for address, port in ((server.address, APP_PORT), (found.service, 80)):
            wait_until(
                lambda address=address, port=port: ask(client.netns, address, port, b"?") == b"?",
                WAITS["workload"],
                what=f"{address}:{port} reached from {client.name}",
            )
        yield found
    for workload in (client, server):
        assert TABLE_HOST_NAT not in workload.node.sh("nft list tables")
        assert "0x111" not in workload.node.sh("ip rule")
        assert workload.node.sh("ip route show table 100") == ""


def test_its_clients_come_through_hbone_with_their_own_addresses(
    mesh: Mesh, cast: Cast, hosts: Hosts, node_link: Link, record: Recorder
) -> None:
    """From a netns on another node; the application sees who it was."""
    client, server = cast.client, hosts.server
    mesh.drop_tunnels(client)
    del hosts.app.callers[:]
    marker = new_marker()
    with record(node_link, f"host {server.address} and host {client.address}") as recording:
        assert ask(client.netns, server.address, APP_PORT, marker) == marker
    assert_claims(recording, mesh.keylog(), exchange_between(client, server, marker))
    assert hosts.app.callers == [client.address]


def test_from_machine_to_machine_both_identities_are_on_the_wire(
    mesh: Mesh, hosts: Hosts, node_link: Link, record: Recorder
) -> None:
    """ssh and the control plane share the link, so the recording is of two ports."""
    client, server = hosts.client, hosts.server
    mesh.drop_tunnels(client)
    marker = new_marker()
    ports = f"(port 15008 or port {APP_PORT})"
    with record(node_link, f"host {server.address} and host {client.address} and {ports}") as seen:
        assert ask(client.netns, server.address, APP_PORT, marker) == marker
    assert_claims(seen, mesh.keylog(), exchange_between(client, server, marker))


def test_its_connections_to_services_are_the_ztunnels(mesh: Mesh, cast: Cast, hosts: Hosts) -> None:
    """The node's own translation of virtual addresses does not come first."""
    log = mesh.access_log(hosts.client.node)
    marker = new_marker()
    assert ask(hosts.client.netns, hosts.service, 80, marker) == marker
    line = log.wait("connection complete", f'src.identity="{hosts.client.identity}"')
    assert f'dst.identity="{cast.server.identity}"' in line
    assert 'dst.service="server-vip.proof.svc' in line


def test_strict_closes_it_to_plaintext_but_for_what_is_excluded(mesh: Mesh, hosts: Hosts) -> None:
    """PERMISSIVE before is the negative twin."""
    (outside, *_) = mesh.external
    address = hosts.server.address
    assert ask(outside.netns, address, APP_PORT, b"x") == b"x"
    with mesh.applied(peer_authentication("STRICT")):
        wait_until(
            lambda: ask(outside.netns, address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="plaintext refused",
        )
        assert ask(outside.netns, address, OTHER_PORT, b"x") == b"x"
        assert ask(hosts.client.netns, address, APP_PORT, b"in the mesh") == b"in the mesh"


def test_the_machine_is_within_reach_without_its_ztunnel(mesh: Mesh, hosts: Hosts) -> None:
    """New ssh sessions, the store and xDS; the captured service itself is closed, not open."""
    node = hosts.server.node
    (outside, *_) = mesh.external
    try:
        node.sh(f"systemctl stop {ZTUNNEL}")
        assert node.host.run("systemctl is-active metalmesh-node").stdout.strip() == "active"
        assert ask(outside.netns, hosts.server.address, APP_PORT, b"x") == b""
        assert ask(hosts.server.netns, outside.address, 22, b"") != b"nobody"
        assert ask(outside.netns, hosts.server.address, OTHER_PORT, b"x") == b"x"
    finally:
        node.sh(f"systemctl start {ZTUNNEL}")
    wait_until(
        lambda: ask(hosts.client.netns, hosts.server.address, APP_PORT, b"x") == b"x",
        WAITS["workload"],
        what="served again",
    )
