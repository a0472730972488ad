"""Namespaces and nodes."""

from __future__ import annotations

import ipaddress
from typing import Any

from metalmesh.model.resources import parse_documents


def test_namespace_has_the_label_of_its_name(read: Any) -> None:
    """NetworkPolicies select namespaces by kubernetes.io/metadata.name."""
    namespace = read("Namespace", "{}", "{name: demo, labels: {team: blue}}")
    assert namespace.labels == {"team": "blue", "kubernetes.io/metadata.name": "demo"}


NODE = """
apiVersion: v1
kind: Node
metadata: {name: node1}
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]
  taints: []
status:
  addresses:
  - {type: Hostname, address: node1}
  - {type: InternalIP, address: 10.77.0.11}
  - {type: InternalIP, address: "fd77::11"}
  capacity: {cpu: 2}
"""


def test_node_gives_ranges_and_internal_addresses() -> None:
    (found,) = parse_documents(NODE, "f")
    node = found.resource
    assert list(map(str, node.pod_cidrs)) == ["10.244.1.0/24", "fd00:10:244:1::/64"]
    assert node.internal_addresses == (
        ipaddress.ip_address("10.77.0.11"),
        ipaddress.ip_address("fd77::11"),
    )


def test_node_with_only_the_single_range_is_understood(read: Any) -> None:
    assert list(map(str, read("Node", "podCIDR: 10.1.0.0/16").pod_cidrs)) == ["10.1.0.0/16"]


def test_node_with_a_bad_range_names_it(read: Any) -> None:
    (error,) = read("Node", "podCIDRs: [10.1.0.0/33]")
    assert error == "spec.podCIDRs[0]: '10.1.0.0/33' is not a CIDR such as 10.0.0.0/8"
