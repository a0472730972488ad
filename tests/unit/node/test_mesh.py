"""What of the mesh concerns a node: routes, virtual ports, known workloads."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from metalmesh.constants import TYPE_ADDRESS, TYPE_NETWORK_POLICY, TYPE_NODE
from metalmesh.model.node import Node
from metalmesh.model.service import LoadBalancing, Service
from metalmesh.model.workload import NetworkAddress, Workload
from metalmesh.net.netlink import Route
from metalmesh.node.mesh import NodeMesh
from metalmesh.render.services import Target, VirtualPort
from metalmesh.xds.delta_client import Update

VIP4, VIP6 = ip_address("10.96.0.10"), ip_address("fd10::10")
A4, A6, B4 = ip_address("10.244.1.10"), ip_address("fd44::10"), ip_address("10.244.2.10")
ECHO = Service(
    name="echo",
    namespace="demo",
    hostname="echo.demo.svc.cluster.local",
    vips=(NetworkAddress("", VIP4), NetworkAddress("", VIP6)),
    ports={80: 8080},
)
KEY = ECHO.key
A = Workload(
    uid="a",
    name="a",
    namespace="demo",
    addresses=(A4, A6),
    node="node1",
    services={KEY: {80: 8080}},
)
B = Workload(
    uid="b",
    name="b",
    namespace="demo",
    addresses=(B4,),
    node="node2",
    services={KEY: {80: 9090}},
    capacity=3,
)


def mesh(*items, nodes=()) -> NodeMesh:
    made = NodeMesh("node1")
    named = {(item.uid if isinstance(item, Workload) else item.key): item for item in items}
    made.apply(Update(TYPE_ADDRESS, named))
    if nodes:
        made.apply(Update(TYPE_NODE, {node.name: node for node in nodes}))
    return made


def test_nothing_is_known_before_it_was_received():
    made = NodeMesh("node1")
    assert made.policies is None
    assert not made.nodes_received
    made.apply(Update(TYPE_NETWORK_POLICY, {}))
    assert made.policies == []


def test_only_workloads_placed_here_are_known_here():
    assert mesh(A, B).known_uids == {"a"}


def test_virtual_ports_have_targets_of_their_family_with_weights():
    assert list(mesh(ECHO, A, B).virtual_ports()) == [
        VirtualPort(KEY, VIP4, 80, (Target(A4, 8080, 1), Target(B4, 9090, 3))),
        VirtualPort(KEY, VIP6, 80, (Target(A6, 8080, 1),)),
    ]


@pytest.mark.parametrize("change", [{"healthy": False}, {"capacity": 0}, {"services": {}}])
def test_unusable_endpoints_are_left_out(change):
    ports = list(mesh(ECHO, replace(A, **change)).virtual_ports())
    assert [port.targets for port in ports] == [(), ()]


def test_unhealthy_endpoints_stay_when_the_service_says_so():
    service = replace(ECHO, load_balancing=LoadBalancing(allow_unhealthy=True))
    ports = list(mesh(service, replace(A, healthy=False)).virtual_ports())
    assert ports[0].targets == (Target(A4, 8080, 1),)


def test_of_services_with_one_address_and_port_the_first_by_name_serves():
    rival = replace(ECHO, namespace="aaa", hostname="echo.aaa.svc.cluster.local")
    assert {port.service for port in mesh(ECHO, rival).virtual_ports()} == {rival.key}
    canonical = replace(ECHO, canonical=True)
    assert {port.service for port in mesh(canonical, rival).virtual_ports()} == {KEY}


def test_addresses_of_service_entries_stay_reachable_around_the_mesh():
    """They may be of the outside: whoever is not captured goes there as ever."""
    entry = replace(ECHO, hostname="echo.example.com")
    assert list(mesh(entry, replace(A, services={entry.key: {80: 80}})).virtual_ports()) == []


def test_routes_use_the_gateway_of_their_family_and_close_our_own_range():
    nodes = (
        Node(
            name="node1",
            addresses=(ip_address("10.77.0.1"),),
            pod_cidrs=(ip_network("10.244.1.0/24"),),
        ),
        Node(
            name="node2",
            addresses=(ip_address("10.77.0.2"), ip_address("fd77::2")),
            pod_cidrs=(ip_network("10.244.2.0/24"), ip_network("fd44:2::/64")),
        ),
        Node(
            name="node3",
            addresses=(ip_address("10.77.0.3"),),
            pod_cidrs=(ip_network("fd44:3::/64"),),
        ),
    )
    made = mesh(nodes=nodes)
    assert made.node_routes() == {
        Route(destination=ip_network("10.244.1.0/24"), kind="unreachable"),
        Route(destination=ip_network("10.244.2.0/24"), gateway=ip_address("10.77.0.2")),
        Route(destination=ip_network("fd44:2::/64"), gateway=ip_address("fd77::2")),
    }
    made.apply(Update(TYPE_NODE, {}, ("node2",)))
    assert {route.kind for route in made.node_routes()} == {"unreachable"}
