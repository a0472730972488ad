"""Where connections go (istio-facts 2.10, 6.1, 6.2)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from metalmesh.model.service import LoadBalancing, LoadBalancingMode, Scope, Service
from metalmesh.model.workload import (
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    NetworkCidr,
    TunnelProtocol,
    Workload,
)
from metalmesh.routing.route import Route, RouteKind, find_route, with_addresses
from metalmesh.routing.state import MeshState
from tests.unit.routing.scene import (
    CART,
    CART1,
    CART2,
    IP,
    SPIFFE,
    VIP,
    dialled,
    mesh,
    route,
    service,
    workload,
)


# --- workloads -------------------------------------------------------------------------------
def test_meshed_workload_is_reached_by_hbone() -> None:
    found = route(mesh(CART1), "10.244.2.1", 8080)
    assert found.kind is RouteKind.HBONE
    assert dialled(found) == [("10.244.2.1:15008", "10.244.2.1:8080")]
    assert found.hops[0].identities == (SPIFFE,)


def test_ipv6_destinations_are_bracketed() -> None:
    found = route(mesh(CART1), "fd00::21", 8080)
    assert dialled(found) == [("[fd00::21]:15008", "[fd00::21]:8080")]


def test_workload_outside_the_mesh_is_reached_plainly() -> None:
    outside = replace(CART1, protocol=TunnelProtocol.NONE)
    found = route(mesh(outside), "10.244.2.1", 8080)
    assert found.kind is RouteKind.TCP
    assert dialled(found) == [("10.244.2.1:8080", "")]
    assert found.hops[0].identities == ()


def test_unhealthy_workload_is_reached_when_addressed_directly() -> None:
    """istio-facts 6.2: status is ignored then."""
    assert route(mesh(replace(CART1, healthy=False)), "10.244.2.1").kind is RouteKind.HBONE


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(mesh(), id="unknown"),
        pytest.param(mesh(replace(CART1, host_network=True)), id="host network"),
        pytest.param(mesh(replace(CART1, network="net2")), id="other network"),
    ],
)
def test_what_is_not_in_the_mesh_passes_through(state: MeshState) -> None:
    assert route(state, "10.244.2.1") == Route(kind=RouteKind.PASSTHROUGH)


def test_workloads_sharing_an_address_are_ranked() -> None:
    """istio-facts 3.5: HBONE pod, pod, HBONE, anything."""
    ranked = [
        replace(CART1, uid="plain", protocol=TunnelProtocol.NONE),
        replace(CART1, uid="hbone"),
        replace(CART1, uid="c//Pod/shop/plain", protocol=TunnelProtocol.NONE),
        replace(CART1, uid="c//Pod/shop/hbone"),
    ]
    state = mesh(*ranked)
    for expected in reversed(ranked):
        assert state.workload_at("", IP("10.244.2.1")) == expected
        state.apply_addresses({}, [expected.uid])
    assert state.workload_at("", IP("10.244.2.1")) is None


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_proxy_never_calls_itself(port: int) -> None:
    found = route(mesh(), "127.0.0.2", port)
    assert found.error == "attempted recursive call to ourselves"


# --- services --------------------------------------------------------------------------------
def test_service_leads_to_its_endpoints_with_their_ports_and_weights() -> None:
    """The endpoint's own port map wins over the service's target port."""
    found = route(mesh(service(), CART1, CART2), VIP)
    assert dialled(found) == [
        ("10.244.2.1:15008", "10.244.2.1:8080"),
        ("10.244.2.2:15008", "10.244.2.2:9090"),
    ]
    assert [hop.weight for hop in found.hops] == [1, 3]
    assert found.service is not None
    assert found.service.key == CART


def test_endpoints_may_come_before_their_service() -> None:
    state = mesh(CART1)
    assert list(state.staged_endpoints()) == [CART]
    assert route(state, VIP).kind is RouteKind.PASSTHROUGH
    state.apply_addresses({CART: service()})
    assert state.staged_endpoints() == {}
    assert route(state, VIP).kind is RouteKind.HBONE


def test_replaced_workload_leaves_no_trace() -> None:
    state = mesh(service(), CART1)
    state.apply_addresses({"cart-1": replace(CART1, addresses=(IP("10.244.2.9"),), services={})})
    assert state.workload_at("", IP("10.244.2.1")) is None
    assert state.endpoints == {}
    state.apply_addresses({}, ["cart-1", CART])
    assert list(state.workloads) == ["client"]
    assert state.services == {}


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([service()], id="no endpoints"),
        pytest.param([service(), replace(CART1, healthy=False)], id="unhealthy"),
        pytest.param([service(), replace(CART1, addresses=())], id="no address"),
        pytest.param([service(), replace(CART1, network="net2")], id="other network"),
        pytest.param([service(), replace(CART1, capacity=0)], id="no capacity"),
        pytest.param([service(ports={80: 0}), CART1], id="named port it does not have"),
        pytest.param([service(ports={443: 8443}), CART1], id="other port"),
        pytest.param([service(ip_families="IPv6"), CART2], id="other family"),
    ],
)
def test_service_without_usable_endpoint_is_an_error(items: list[Workload | Service]) -> None:
    """istio-facts 6.1: never passthrough."""
    found = route(mesh(*items), VIP)
    assert (found.kind, found.error) == (RouteKind.ERROR, "no healthy upstream: 10.96.0.10:80")


def test_unhealthy_endpoints_serve_when_all_are_allowed() -> None:
    allowing = service(load_balancing=LoadBalancing(allow_unhealthy=True))
    assert route(mesh(allowing, replace(CART1, healthy=False)), VIP).kind is RouteKind.HBONE


def test_named_port_uses_the_endpoints_own() -> None:
    found = route(mesh(service(ports={80: 0}), CART1, CART2), VIP)
    assert dialled(found) == [("10.244.2.2:15008", "10.244.2.2:9090")]


def test_passthrough_service_goes_where_the_client_wanted() -> None:
    balancing = LoadBalancing(LoadBalancingMode.PASSTHROUGH)
    found = route(mesh(service(load_balancing=balancing), CART1), VIP)
    assert (found.kind, found.hops) == (RouteKind.PASSTHROUGH, ())


def test_headless_services_workloads_are_addressed_directly() -> None:
    """istio-facts 6.4: neither balancing nor waypoint of a service that has no address."""
    headless = service(vips=(), waypoint=BY_NAME, load_balancing=LoadBalancing(
        LoadBalancingMode.STRICT, (Scope.NODE,)
    ))  # fmt: skip
    found = route(mesh(headless, CART1), "10.244.2.1", 8080)
    assert dialled(found) == [("10.244.2.1:15008", "10.244.2.1:8080")]
    assert found.service is None


def test_private_service_of_another_namespace_is_as_if_it_were_not_there() -> None:
    """istio-facts 6.1: its clients pass through, here and by range."""
    hidden = service(namespace="hidden", private=True)
    assert route(mesh(hidden, CART1), VIP).kind is RouteKind.PASSTHROUGH


def test_extra_identities_of_a_service_are_accepted() -> None:
    extra = "spiffe://cluster.local/ns/shop/sa/other"
    named = service(subject_alt_names=(extra, SPIFFE, "cart.example.org"))
    found = route(mesh(named, CART1), VIP)
    assert found.hops[0].identities == (SPIFFE, extra)


def test_service_of_the_clients_namespace_wins() -> None:
    """istio-facts 6.1: own namespace, then canonical; private ones are for their own."""
    other = service(namespace="other", hostname="other.example", canonical=True)
    hidden = service(namespace="hidden", hostname="hidden.example", private=True, canonical=True)
    state = mesh(other, hidden, service())
    assert state.service_at("", VIP, "shop") == service()
    assert state.service_at("", VIP, "jobs") == other
    assert state.service_at("", VIP, "hidden") == hidden


def test_ties_are_settled_alike_everywhere() -> None:
    """Whatever arrived first."""
    one, two = (service(namespace=name, hostname=f"{name}.example") for name in ("one", "two"))
    assert mesh(one, two).service_at("", VIP, "jobs") == one
    assert mesh(two, one).service_at("", VIP, "jobs") == one


def test_longest_range_serves_addresses_without_service_of_their_own() -> None:
    wide = service(
        hostname="wide", vips=(), cidr_vips=(NetworkCidr("", ip_network("10.96.0.0/16")),)
    )
    narrow_range = service(
        hostname="narrow", vips=(), cidr_vips=(NetworkCidr("", ip_network("10.96.0.0/24")),)
    )
    state = mesh(wide, narrow_range, service())
    assert state.service_in_range("", IP("10.96.0.11"), "shop") == narrow_range
    assert state.service_in_range("", IP("10.96.1.1"), "shop") == wide
    assert state.service_in_range("", IP("fd00::1"), "shop") is None
    assert route(state, VIP).service == service()
    state.apply_addresses({}, [narrow_range.key])
    assert state.service_in_range("", IP("10.96.0.11"), "shop") == wide


def test_ranges_are_ranked_by_namespace_then_length_then_canonical() -> None:
    def ranged(name: str, cidr: str, **changes: object) -> Service:
        vip = NetworkCidr("", ip_network(cidr))
        return service(hostname=name, vips=(), cidr_vips=(vip,), **changes)

    own = ranged("own", "10.0.0.0/8")
    longer = ranged("longer", "10.1.0.0/16", namespace="other")
    canonical = ranged("canonical", "10.1.0.0/16", namespace="third", canonical=True)
    hidden = ranged("hidden", "10.1.1.0/24", namespace="hidden", private=True)
    state = mesh(own, longer, canonical, hidden)
    assert state.service_in_range("", IP("10.1.1.1"), "shop") == own
    assert state.service_in_range("", IP("10.1.1.1"), "jobs") == canonical
    assert state.service_in_range("", IP("10.1.1.1"), "hidden") == hidden


ORIGINAL = LoadBalancing(LoadBalancingMode.PASSTHROUGH, allow_unhealthy=True)
EVERYTHING = NetworkCidr("", ip_network("10.0.0.0/8"))
AT_CART = (NetworkAddress("", IP("10.244.2.1")),)
OUTSIDE = replace(CART1, protocol=TunnelProtocol.NONE, services={})


@pytest.mark.parametrize(
    ("items", "kind", "authority"),
    [
        pytest.param(
            [service(vips=AT_CART), CART1], RouteKind.HBONE, "10.244.2.1:8080", id="its endpoint"
        ),
        pytest.param(
            [service(vips=AT_CART), replace(CART1, services={}), CART2],
            RouteKind.HBONE, "10.244.2.1:80", id="somebody else's address",
        ),
        pytest.param(
            [service(vips=AT_CART), OUTSIDE, CART2],
            RouteKind.HBONE, "10.244.2.2:9090", id="an outsider's address",
        ),
        pytest.param(
            [service(vips=(), cidr_vips=(EVERYTHING,), load_balancing=ORIGINAL), CART1],
            RouteKind.HBONE, "10.244.2.1:80", id="range around a meshed workload",
        ),
        pytest.param(
            [service(vips=(), cidr_vips=(EVERYTHING,), load_balancing=ORIGINAL)],
            RouteKind.PASSTHROUGH, "", id="range around nobody",
        ),
    ],
)  # fmt: skip
def test_address_of_a_workload_that_a_service_claims(
    items: list[Workload | Service], kind: RouteKind, authority: str
) -> None:
    """istio-facts 6.1: the service; ours: never instead of a meshed workload it does not have."""
    found = route(mesh(*items), "10.244.2.1")
    assert (found.kind, [hop.authority for hop in found.hops]) == (
        kind,
        [authority][: bool(authority)],
    )


def test_endpoints_inside_and_outside_of_the_mesh_make_one_route() -> None:
    """Each connection gets one of either sort, by weight."""
    outside = replace(CART2, protocol=TunnelProtocol.NONE)
    found = route(mesh(service(), CART1, outside), VIP)
    assert found.kind is RouteKind.MIXED
    assert dialled(found) == [("10.244.2.1:15008", "10.244.2.1:8080"), ("10.244.2.2:9090", "")]


# --- names -------------------------------------------------------------------------------------
NAMED = replace(CART1, uid="named", addresses=(), hostname="cart.example.org")


def test_endpoints_with_a_name_are_completed_when_it_is_resolved() -> None:
    """istio-facts 6.3; the others of the route stay as they are."""
    found = route(mesh(service(), NAMED, CART2), VIP)
    assert found.hostnames == ["cart.example.org"]
    complete = with_addresses(found, {"cart.example.org": [IP("192.0.2.5")]})
    assert complete.hostnames == []
    assert dialled(complete) == [
        ("10.244.2.2:15008", "10.244.2.2:9090"),
        ("192.0.2.5:15008", "192.0.2.5:8080"),
    ]
    assert complete.hops[1].identities == (SPIFFE,)
    assert dialled(with_addresses(found, {})) == [("10.244.2.2:15008", "10.244.2.2:9090")]


def test_names_outside_of_the_mesh_are_dialled_plainly() -> None:
    plain = replace(NAMED, protocol=TunnelProtocol.NONE)
    found = with_addresses(
        route(mesh(service(), plain), VIP), {"cart.example.org": [IP("192.0.2.5")]}
    )
    assert (found.kind, dialled(found)) == (RouteKind.TCP, [("192.0.2.5:8080", "")])


def test_further_addresses_of_a_name_are_for_when_the_first_fails() -> None:
    """They get no share of the connections, and take none from other endpoints."""
    answers = {"cart.example.org": [IP("192.0.2.5"), IP("192.0.2.6"), IP("2001:db8::5")]}
    found = with_addresses(route(mesh(service(), NAMED, CART2), VIP), answers)
    assert [(hop.address, hop.weight) for hop in found.hops] == [
        ("10.244.2.2:15008", 3),
        ("192.0.2.5:15008", 1),
        ("192.0.2.6:15008", 0),
        ("[2001:db8::5]:15008", 0),
    ]


def test_name_without_address_is_an_error() -> None:
    found = with_addresses(route(mesh(service(), NAMED), VIP), {})
    assert found.error == "no ip addresses were resolved for workload: named"


# --- waypoints -----------------------------------------------------------------------------------
WAYPOINT_KEY = NamespacedHostname("shop", "wp.shop.svc.cluster.local")
WAYPOINT_SERVICE = service(
    name="wp",
    hostname="wp.shop.svc.cluster.local",
    vips=(NetworkAddress("", IP("10.96.0.20")),),
    ports={15008: 15008},
    subject_alt_names=("spiffe://cluster.local/ns/shop/sa/wp-alt",),
)
WAYPOINT = workload(
    "wp-1", "10.244.3.1", service_account="wp", services={str(WAYPOINT_KEY): {15008: 15008}}
)
BY_NAME = GatewayAddress(WAYPOINT_KEY, 15008)
BY_VIP = GatewayAddress(NetworkAddress("", IP("10.96.0.20")), 15008)
BY_ADDRESS = GatewayAddress(NetworkAddress("", IP("10.244.3.1")), 15008)


@pytest.mark.parametrize("gateway", [BY_NAME, BY_VIP, BY_ADDRESS], ids=["name", "vip", "address"])
def test_service_with_waypoint_is_reached_through_it(gateway: GatewayAddress) -> None:
    """istio-facts 2.1: the authority is the address as the application dialled it."""
    state = mesh(service(waypoint=gateway), CART1, WAYPOINT_SERVICE, WAYPOINT)
    found = route(state, VIP)
    assert found.kind is RouteKind.HBONE
    assert dialled(found) == [("10.244.3.1:15008", "10.96.0.10:80")]
    assert found.hops[0].identities[0] == "spiffe://cluster.local/ns/shop/sa/wp"
    assert found.service is not None
    assert found.service.key == CART


def test_workload_waypoint_is_used_when_the_workload_is_addressed() -> None:
    """istio-facts 2.10, 5: not when the service was."""
    cart = replace(CART1, waypoint=BY_NAME)
    state = mesh(service(), cart, WAYPOINT_SERVICE, WAYPOINT)
    assert dialled(route(state, "10.244.2.1", 8080)) == [("10.244.3.1:15008", "10.244.2.1:8080")]
    assert dialled(route(state, VIP)) == [("10.244.2.1:15008", "10.244.2.1:8080")]


def test_waypoint_is_not_sent_through_itself() -> None:
    cart = replace(CART1, waypoint=BY_NAME)
    state = mesh(cart, WAYPOINT_SERVICE, WAYPOINT)
    found = find_route(state, WAYPOINT, IP("10.244.2.1"), 8080)
    assert dialled(found) == [("10.244.2.1:15008", "10.244.2.1:8080")]


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ([], "unknown waypoint: shop/wp.shop.svc.cluster.local"),
        ([WAYPOINT_SERVICE], "no healthy upstream: waypoint shop/wp.shop.svc.cluster.local"),
    ],
    ids=["service unknown", "no workload"],
)
def test_missing_waypoint_fails_closed(items: list[Workload | Service], error: str) -> None:
    found = route(mesh(service(waypoint=BY_NAME), CART1, *items), VIP)
    assert (found.kind, found.error) == (RouteKind.ERROR, error)
