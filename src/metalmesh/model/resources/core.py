"""Namespace, Node and ServiceAccount (v1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.resources.meta import Metadata
    from metalmesh.model.resources.reader import Reader
    from metalmesh.model.workload import IPAddress

from metalmesh.model.resources.meta import NAME_LABEL
from metalmesh.model.resources.reader import read_address, read_network
from metalmesh.model.workload import Locality

#: where a machine is, as Kubernetes labels its nodes (Istio adds the subzone)
TOPOLOGY_LABELS: Final = (
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace; its labels choose the data plane mode of its workloads."""

    meta: Metadata

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels, with the one that Kubernetes adds by itself."""
        return {**self.meta.labels, NAME_LABEL: self.meta.name}


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A service account; workloads may name it without its being declared."""

    meta: Metadata


@dataclass(frozen=True, slots=True)
class NodeResource:
    """A machine of the mesh."""

    meta: Metadata
    pod_cidrs: tuple[IPNetwork, ...] = ()
    internal_addresses: tuple[IPAddress, ...] = ()
    #: of its workloads, too, unless they say otherwise
    locality: Locality = field(default_factory=Locality)


def parse_namespace(reader: Reader, meta: Metadata) -> Namespace:
    """Read a Namespace; ``spec`` holds finalizers only."""
    reader.ignore("spec", "status")
    return Namespace(meta)


def parse_service_account(reader: Reader, meta: Metadata) -> ServiceAccount:
    """Read a ServiceAccount."""
    reader.ignore("secrets", "imagePullSecrets", "automountServiceAccountToken")
    return ServiceAccount(meta)


def parse_node(reader: Reader, meta: Metadata) -> NodeResource:
    """Read a Node: ``spec.podCIDRs`` and the InternalIP addresses of ``status``."""
    with reader.child("spec") as spec:
        spec.ignore("providerID", "taints", "unschedulable", "externalID", "configSource")
        texts = spec.strings("podCIDRs") or tuple(filter(None, [spec.string("podCIDR")]))
        spec.has("podCIDR")
        cidrs = [read_network(spec, f"podCIDRs[{n}]", text) for n, text in enumerate(texts)]
    # the rest of status is the kubelet's: only the addresses are read
    status = reader.child("status")
    addresses = []
    for item in status.children("addresses"):
        if item.string("type") == "InternalIP":
            addresses.append(read_address(item, "address", item.required("address")))
    return NodeResource(
        meta,
        tuple(cidr for cidr in cidrs if cidr is not None),
        tuple(address for address in addresses if address is not None),
        Locality(*(meta.labels.get(name, "") for name in TOPOLOGY_LABELS)),
    )
