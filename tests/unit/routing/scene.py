"""A client, a service with two endpoints, and ways to ask for a route."""

from __future__ import annotations

from ipaddress import ip_address

from metalmesh.model.service import Service
from metalmesh.model.workload import Locality, NetworkAddress, TunnelProtocol, Workload
from metalmesh.routing.route import Route, find_route
from metalmesh.routing.state import MeshState

IP = ip_address
VIP = IP("10.96.0.10")
CART = "shop/cart.shop.svc.cluster.local"
SPIFFE = "spiffe://cluster.local/ns/shop/sa/cart"


def workload(uid: str, *addresses: str, **changes: object) -> Workload:
    values = {
        "uid": uid,
        "name": uid,
        "namespace": "shop",
        "service_account": "cart",
        "addresses": tuple(map(IP, addresses)),
        "protocol": TunnelProtocol.HBONE,
        **changes,
    }
    return Workload(**values)  # type: ignore[arg-type]


def service(**changes: object) -> Service:
    values = {
        "name": "cart",
        "namespace": "shop",
        "hostname": "cart.shop.svc.cluster.local",
        "vips": (NetworkAddress("", VIP),),
        "ports": {80: 8080},
        **changes,
    }
    return Service(**values)  # type: ignore[arg-type]


CLIENT = workload("client", "10.244.1.5", node="n1", locality=Locality("r1", "z1", "s1"))
CART1 = workload("cart-1", "10.244.2.1", "fd00::21", services={CART: {}})
CART2 = workload("cart-2", "10.244.2.2", services={CART: {80: 9090}}, capacity=3)


def mesh(*items: Workload | Service) -> MeshState:
    state = MeshState()
    named = {item.uid if isinstance(item, Workload) else item.key: item for item in items}
    state.apply_addresses({CLIENT.uid: CLIENT, **named})
    return state


def route(state: MeshState, address: str | object, port: int = 80) -> Route:
    return find_route(state, CLIENT, IP(str(address)), port)


def dialled(found: Route) -> list[tuple[str, str]]:
    return [(hop.address, hop.authority) for hop in found.hops]
