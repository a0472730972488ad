"""What the node agent knows of the mesh, from the control plane or from its last good state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh import constants
from metalmesh.constants import TYPE_ADDRESS, TYPE_NETWORK_POLICY, TYPE_NODE
from metalmesh.net.netlink import Route
from metalmesh.render.services import Target, VirtualPort
from metalmesh.routing.state import MeshState
from metalmesh.xds.delta_client import Subscription
from metalmesh.xds.node import decode_network_policy, decode_node
from metalmesh.xds.wds import decode_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metalmesh.model.network_policy import CompiledNetworkPolicy
    from metalmesh.model.node import Node
    from metalmesh.model.service import Service
    from metalmesh.model.workload import IPAddress
    from metalmesh.xds.delta_client import Update

SUBSCRIPTIONS: Final = (
    Subscription(type_url=TYPE_NETWORK_POLICY, decode=decode_network_policy),
    Subscription(type_url=TYPE_ADDRESS, decode=decode_address),
    Subscription(type_url=TYPE_NODE, decode=decode_node),
)


class NodeMesh:
    """Workloads, services, nodes and policies, and what of them concerns this node."""

    def __init__(self, node_name: str, network: str = "") -> None:
        self._node_name = node_name
        self._network = network
        self._received: set[str] = set()
        self.state = MeshState()
        self.nodes: dict[str, Node] = {}

    def apply(self, update: Update) -> None:
        """Take over what one response changed."""
        match update.type_url:
            case constants.TYPE_ADDRESS:
                self.state.apply_addresses(update.changed, update.removed)
            case constants.TYPE_NETWORK_POLICY:
                self.state.apply_network_policies(update.changed, update.removed)
            case constants.TYPE_NODE:
                for name in update.removed:
                    self.nodes.pop(name, None)
                self.nodes.update(update.changed)
        self._received.add(update.type_url)

    @property
    def policies(self) -> list[CompiledNetworkPolicy] | None:
        """Policies of this node; None as long as none were received."""
        if TYPE_NETWORK_POLICY not in self._received:
            return None
        found = self.state.network_policies
        return [found[key] for key in sorted(found)]

    @property
    def known_uids(self) -> frozenset[str]:
        """Workloads the control plane has placed on this node."""
        return frozenset(
            uid
            for uid, workload in self.state.workloads.items()
            if workload.node == self._node_name
        )

    @property
    def nodes_received(self) -> bool:
        """Whether routes to other nodes are known (and missing ones are to be removed)."""
        return TYPE_NODE in self._received

    @property
    def services_received(self) -> bool:
        """Whether services are known."""
        return TYPE_ADDRESS in self._received

    def node_routes(self) -> set[Route]:
        """Routes to the workloads of the other nodes; none to unused addresses of our own."""
        routes = set()
        for node in self.nodes.values():
            for network in node.pod_cidrs:
                if node.name == self._node_name:
                    routes.add(Route(destination=network, kind="unreachable"))
                    continue
                for address in node.addresses:
                    if address.version == network.version:
                        routes.add(Route(destination=network, gateway=address))
                        break
        return routes

    def virtual_ports(self) -> Iterator[VirtualPort]:
        """Every port of every virtual address; of services that share one, the canonical one.

        Else the first by name.
        """
        taken: set[tuple[IPAddress, int]] = set()
        services = self.state.services.values()
        for service in sorted(services, key=lambda item: (not item.canonical, item.key)):
            key = service.key
            if not _is_kubernetes_service(service):
                continue
            for vip in service.vips:
                for port in sorted(service.ports):
                    if (vip.address, port) not in taken:
                        taken.add((vip.address, port))
                        targets = tuple(self._targets(service, vip.address.version, port))
                        yield VirtualPort(key, vip.address, port, targets)

    def _targets(self, service: Service, version: int, port: int) -> Iterator[Target]:
        endpoints = self.state.endpoints.get(service.key, {})
        for uid, ports in endpoints.items():
            workload = self.state.workloads[uid]
            target = ports.get(port, 0)
            usable = workload.healthy or service.load_balancing.allow_unhealthy
            if target and usable and workload.capacity > 0:
                for address in workload.addresses:
                    if address.version == version:
                        yield Target(address, target, workload.capacity)
                        break

    def namespace_of(self, address: IPAddress) -> str:
        """Namespace of the workload with this address; "" when it is none of the mesh."""
        workload = self.state.workload_at(self._network, address)
        return workload.namespace if workload is not None else ""


def _is_kubernetes_service(service: Service) -> bool:
    """Not a ServiceEntry's: those may claim addresses of the outside, which stay reachable."""
    return service.hostname.startswith(f"{service.name}.{service.namespace}.svc.")
