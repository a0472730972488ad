"""Which endpoints a client may use (istio-facts 6.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metalmesh.model.service import LoadBalancing, LoadBalancingMode, Scope
from metalmesh.model.workload import Locality, Workload
from metalmesh.routing.endpoints import choose_address, rank
from tests.unit.routing.scene import (
    CART1,
    CLIENT,
    IP,
    VIP,
    mesh,
    route,
    service,
)

NEAR = replace(CART1, uid="near", node="n1", locality=Locality("r1", "z1", "s1"))
ZONE = replace(CART1, uid="zone", node="n2", locality=Locality("r1", "z1", "s2"))
REGION = replace(CART1, uid="region", node="n3", locality=Locality("r1", "z2", "s1"))
FAR = replace(CART1, uid="far", node="n1", locality=Locality("r2", "z1", "s1"))
LOCALITY = (Scope.REGION, Scope.ZONE, Scope.SUBZONE)


@pytest.mark.parametrize(
    ("mode", "preferences", "endpoints", "expected"),
    [
        pytest.param("Failover", LOCALITY, [NEAR, ZONE, REGION, FAR], ["near"], id="all match"),
        pytest.param("Failover", LOCALITY, [ZONE, REGION, FAR], ["zone"], id="best prefix"),
        pytest.param("Failover", LOCALITY, [REGION, FAR], ["region"], id="first mismatch stops"),
        pytest.param("Failover", LOCALITY, [FAR], ["far"], id="anything rather than nothing"),
        pytest.param("Strict", (Scope.NODE,), [NEAR, ZONE, FAR], ["far", "near"], id="node"),
        pytest.param("Strict", (Scope.NODE,), [ZONE], [], id="no endpoint on the node"),
        pytest.param("Strict", LOCALITY, [ZONE, REGION], [], id="strict wants them all"),
        pytest.param("Standard", LOCALITY, [NEAR, FAR], ["far", "near"], id="standard"),
        pytest.param("Failover", (Scope.CLUSTER,), [NEAR, FAR], ["far", "near"], id="cluster"),
        pytest.param(
            "Failover", (Scope.NETWORK, Scope.REGION), [NEAR, FAR], ["near"], id="network first"
        ),
    ],
)
def test_preferences_choose_endpoints(
    mode: str, preferences: tuple[Scope, ...], endpoints: list[Workload], expected: list[str]
) -> None:
    balancing = LoadBalancing(LoadBalancingMode(mode), preferences)
    found = route(mesh(service(load_balancing=balancing), *endpoints), VIP)
    assert sorted(hop.workload.uid for hop in found.hops) == expected


def test_best_endpoint_is_one_whose_address_the_client_may_use() -> None:
    """A near endpoint of the other family only must not hide a far one that works."""
    near = replace(NEAR, addresses=(IP("fd00::21"),))
    balancing = LoadBalancing(LoadBalancingMode.FAILOVER, LOCALITY)
    found = route(mesh(service(load_balancing=balancing, ip_families="IPv4"), near, FAR), VIP)
    assert [hop.workload.uid for hop in found.hops] == ["far"]


FROM = CLIENT
NETWORK_FIRST = (Scope.NETWORK, Scope.REGION, Scope.ZONE)
ELSEWHERE = {"network": "net2"}


@pytest.mark.parametrize(
    ("preferences", "changes", "expected"),
    [
        pytest.param(NETWORK_FIRST, {}, (3, 2), id="all match"),
        pytest.param(NETWORK_FIRST, {"locality": Locality("r2")}, (1, 2), id="network only"),
        pytest.param(NETWORK_FIRST, ELSEWHERE, (2, 0), id="other network, near"),
        pytest.param(
            NETWORK_FIRST,
            {**ELSEWHERE, "locality": Locality("r2")},
            (0, 0),
            id="other network, far",
        ),
        pytest.param(
            (Scope.REGION, Scope.NETWORK, Scope.ZONE), ELSEWHERE, (1, 0), id="network not first"
        ),
        pytest.param((Scope.REGION,), {"locality": Locality()}, (0, 0), id="unknown region"),
        pytest.param((Scope.SUBZONE, Scope.NODE), {"node": "n9"}, (1, 0), id="stops at a mismatch"),
        pytest.param((), {}, (0, 0), id="no preferences"),
    ],
)
def test_rank_of_an_endpoint(
    preferences: tuple[Scope, ...], changes: dict[str, object], expected: tuple[int, int]
) -> None:
    """istio-facts 6.2: matching prefix; every endpoint of the own network outranks the others."""
    there = replace(NEAR, **changes)  # type: ignore[arg-type]
    assert rank(preferences, FROM, there) == expected


def test_two_unknown_places_are_the_same_place() -> None:
    """istio-facts 6.2: as in ztunnel, empty strings are equal."""
    nowhere = replace(NEAR, locality=Locality())
    source = replace(CLIENT, locality=Locality())
    assert rank(LOCALITY, source, nowhere) == (3, 0)


@pytest.mark.parametrize(
    ("wanted", "families", "expected"),
    [
        ("fd00::21", "", "fd00::21"),
        ("10.96.0.10", "", "10.244.2.1"),
        ("fd00::96", "", "fd00::21"),
        ("fd00::96", "IPv4", "10.244.2.1"),
        ("10.96.0.10", "IPv6", "fd00::21"),
        ("10.96.0.10", "Dual", "10.244.2.1"),
    ],
)
def test_address_of_the_clients_family_is_preferred(
    wanted: str, families: str, expected: str
) -> None:
    assert choose_address(CART1, IP(wanted), families) == IP(expected)
    assert choose_address(replace(CART1, addresses=()), IP(wanted), families) is None
