"""What a ztunnel knows of the mesh, indexed for lookup (istio-facts 3.3, 6.1).

Order of arrival does not matter: endpoints of a service are found through the workloads that list
it, so they may come before the service itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.model.workload import TunnelProtocol, Workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from metalmesh.model.authorization import Authorization
    from metalmesh.model.network_policy import CompiledNetworkPolicy
    from metalmesh.model.service import Service
    from metalmesh.model.workload import IPAddress

#: middle of the uids istiod gives to pods; preferred when several workloads share an address
_POD_UID: Final = "//Pod/"

AddressKey = tuple[str, "IPAddress"]


class MeshState:
    """Workloads, services and policies by every key that lookups need."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self.services: dict[str, Service] = {}
        self.policies: dict[str, Authorization] = {}
        self.network_policies: dict[str, CompiledNetworkPolicy] = {}
        #: service key -> uid -> service port -> target port (of that endpoint)
        self.endpoints: dict[str, dict[str, Mapping[int, int]]] = {}
        self._by_address: dict[AddressKey, list[str]] = {}
        self._by_vip: dict[AddressKey, list[str]] = {}
        #: services with virtual ranges
        self._ranged: dict[str, Service] = {}

    # --- changes ---------------------------------------------------------------------------
    def apply_addresses(
        self, changed: Mapping[str, Workload | Service], removed: Iterable[str] = ()
    ) -> None:
        """Insert, replace and remove workloads and services by their resource names."""
        for name in removed:
            self._remove_workload(name)
            self._remove_service(name)
        for name, item in changed.items():
            if isinstance(item, Workload):
                self._remove_workload(name)
                self._insert_workload(name, item)
            else:
                self._remove_service(name)
                self._insert_service(name, item)

    def apply_policies(
        self, changed: Mapping[str, Authorization], removed: Iterable[str] = ()
    ) -> None:
        """Insert, replace and remove L4 policies."""
        for name in removed:
            self.policies.pop(name, None)
        self.policies.update(changed)

    def apply_network_policies(
        self, changed: Mapping[str, CompiledNetworkPolicy], removed: Iterable[str] = ()
    ) -> None:
        """Insert, replace and remove NetworkPolicies."""
        for name in removed:
            self.network_policies.pop(name, None)
        self.network_policies.update(changed)

    def _insert_workload(self, name: str, workload: Workload) -> None:
        self.workloads[name] = workload
        if not workload.host_network:
            for address in workload.addresses:
                self._by_address.setdefault((workload.network, address), []).append(name)
        for key, ports in workload.services.items():
            self.endpoints.setdefault(key, {})[name] = ports

    def _remove_workload(self, name: str) -> None:
        workload = self.workloads.pop(name, None)
        if workload is None:
            return
        for address in workload.addresses:
            _discard(self._by_address, (workload.network, address), name)
        for key in workload.services:
            self.endpoints[key].pop(name, None)
            if not self.endpoints[key]:
                del self.endpoints[key]

    def _insert_service(self, name: str, service: Service) -> None:
        self.services[name] = service
        for vip in service.vips:
            self._by_vip.setdefault((vip.network, vip.address), []).append(name)
        if service.cidr_vips:
            self._ranged[name] = service

    def _remove_service(self, name: str) -> None:
        service = self.services.pop(name, None)
        self._ranged.pop(name, None)
        if service is not None:
            for vip in service.vips:
                _discard(self._by_vip, (vip.network, vip.address), name)

    # --- lookups ---------------------------------------------------------------------------
    def workload_at(self, network: str, address: IPAddress) -> Workload | None:
        """The workload with this address; host-network ones have none of their own."""
        uids = self._by_address.get((network, address))
        if not uids:
            return None
        return self.workloads[max(uids, key=lambda uid: (_preference(self.workloads[uid]), uid))]

    def service_at(self, network: str, address: IPAddress, namespace: str) -> Service | None:
        """The service a client of ``namespace`` reaches at this very virtual address."""
        keys = self._by_vip.get((network, address), ())
        visible = [s for s in map(self.services.__getitem__, keys) if _visible(s, namespace)]
        # the last resort is the name, so that every node decides alike
        return min(
            visible, key=lambda s: (s.namespace != namespace, not s.canonical, s.key), default=None
        )

    def service_in_range(self, network: str, address: IPAddress, namespace: str) -> Service | None:
        """The service that a client of ``namespace`` reaches by one of its virtual ranges."""
        found = [
            (service.namespace != namespace, -vip.cidr.prefixlen, not service.canonical, name)
            for name, service in self._ranged.items()
            for vip in service.cidr_vips
            if vip.network == network
            and vip.cidr.version == address.version
            and address in vip.cidr
            and _visible(service, namespace)
        ]
        return self._ranged[min(found)[-1]] if found else None

    def workload_named(self, namespace: str, name: str, service_account: str) -> Workload | None:
        """The workload that the node agent describes by these names."""
        for workload in self.workloads.values():
            if (workload.namespace, workload.name) == (namespace, name) and (
                workload.service_account == service_account
            ):
                return workload
        return None

    def staged_endpoints(self) -> dict[str, dict[str, Mapping[int, int]]]:
        """Endpoints of services that have not arrived."""
        return {key: found for key, found in self.endpoints.items() if key not in self.services}


def _preference(workload: Workload) -> int:
    """Rank among workloads sharing an address: HBONE pod, pod, HBONE, anything."""
    pod = _POD_UID in workload.uid
    hbone = workload.protocol is TunnelProtocol.HBONE
    return 3 if pod and hbone else 2 if pod else 1 if hbone else 0


def _visible(service: Service, namespace: str) -> bool:
    return not service.private or service.namespace == namespace


def _discard(index: dict[AddressKey, list[str]], key: AddressKey, name: str) -> None:
    names = index.get(key)
    if names is not None and name in names:
        names.remove(name)
        if not names:
            del index[key]
