"""Hostnames, their owners and their addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from metalmesh.constants import TYPE_ADDRESS
from metalmesh.controlplane.compute import Computation, ComputeOptions, compute
from metalmesh.model.service import LoadBalancing, LoadBalancingMode, Scope, Service
from metalmesh.model.workload import Locality, TunnelProtocol, Workload
from metalmesh.render.wds import MeshOptions
from metalmesh.xds.wds import decode_address
from tests.unit.controlplane.conftest import entry

OPTIONS = ComputeOptions(
    service_cidrs=(ipaddress.ip_network("10.96.0.0/16"), ipaddress.ip_network("fd96::/112")),
    service_entry_cidrs=(
        ipaddress.ip_network("240.240.0.0/16"),
        ipaddress.ip_network("2001:2::/48"),
    ),
)


def service_entry(name: str, spec: str, *, namespace: str = "demo", created: str = "") -> str:
    meta = f"name: {name}, namespace: {namespace}"
    if created:
        meta += f", creationTimestamp: {created}"
    ports = "ports: [{number: 80, name: http}]"
    return (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n"
        f"metadata: {{{meta}}}\nspec: {{{ports}, {spec}}}\n"
    )


def service(name: str, spec: str = "", *, annotations: str = "") -> str:
    return (
        "apiVersion: v1\nkind: Service\n"
        f"metadata: {{name: {name}, namespace: demo, annotations: {{{annotations}}}}}\n"
        f"spec: {{ports: [{{port: 80}}]{spec and ', ' + spec}}}\n"
    )


def served(found: Computation) -> Mapping[str, Any]:
    return {
        name: decode_address(item.data, name)
        for name, item in found.snapshot.of_type(TYPE_ADDRESS).items()
    }


def vips(item: Service) -> list[str]:
    return [str(vip.address) for vip in item.vips]


STATIC = "hosts: [db.internal], resolution: STATIC"


def test_service_owns_its_hostname_against_older_service_entries(admit_files: Any) -> None:
    files = {
        "e.yaml": service_entry(
            "e",
            "hosts: [s.demo.svc.cluster.local], resolution: STATIC",
            created="2020-01-01T00:00:00Z",
        ),
        "s.yaml": service("s"),
    }
    found = compute(admit_files(files).objects, OPTIONS)
    assert served(found)["demo/s.demo.svc.cluster.local"].name == "s"
    (condition,) = found.conditions["ServiceEntry demo/e"]
    assert (condition.status, condition.reason) == (False, "HostConflict")
    assert "s.demo.svc.cluster.local belongs to Service demo/s" in condition.message


def test_oldest_service_entry_is_canonical_and_owns_the_name_in_its_namespace(
    admit_files: Any,
) -> None:
    files = {
        "a.yaml": service_entry("a", STATIC, created="2026-01-02T00:00:00Z"),
        "b.yaml": service_entry("b", STATIC, created="2026-01-01T00:00:00Z", namespace="other"),
        "c.yaml": service_entry("c", STATIC, created="2026-01-03T00:00:00Z"),
    }
    found = compute(admit_files(files).objects, OPTIONS)
    services = served(found)
    assert (services["demo/db.internal"].name, services["demo/db.internal"].canonical) == (
        "a",
        False,
    )
    assert services["other/db.internal"].canonical
    reasons = {key: condition.reason for key, (condition,) in found.conditions.items()}
    assert reasons == {
        "ServiceEntry demo/a": "Accepted",
        "ServiceEntry other/b": "Accepted",
        "ServiceEntry demo/c": "HostConflict",
    }


def test_nobody_takes_an_address_from_clients_of_other_namespaces(admit_files: Any) -> None:
    """A Service's, whether chosen or allocated, and an older ServiceEntry's."""
    files = {"s.yaml": service("s", "clusterIP: 10.96.1.1"), "t.yaml": service("t")}
    first = compute(admit_files(files).objects, OPTIONS)
    (address, _) = vips(served(first)["demo/t.demo.svc.cluster.local"])
    addresses = ("10.96.1.1", address, "192.0.2.1", "192.0.2.1")
    for day, (name, theirs) in enumerate(zip("abcd", addresses, strict=True), 1):
        spec = f"hosts: [{name}.example], resolution: STATIC, addresses: [{theirs}]"
        created = f"2026-01-0{day}T00:00:00Z"
        files[f"{name}.yaml"] = service_entry(name, spec, namespace="evil", created=created)
    files["u.yaml"] = service("u", f"clusterIP: {address}").replace("demo", "evil")
    found = compute(admit_files(files).objects, OPTIONS, Computation(vips=first.vips))
    services = served(found)
    assert not services["evil/u.evil.svc.cluster.local"].canonical
    assert found.conditions["Service evil/u"][0].reason == "AddressConflict"
    assert services["demo/t.demo.svc.cluster.local"].canonical
    canonical = {name: services[f"evil/{name}.example"].canonical for name in "abcd"}
    assert canonical == {"a": False, "b": False, "c": True, "d": False}
    reasons = [found.conditions[f"ServiceEntry evil/{name}"][0].reason for name in "abcd"]
    assert reasons == ["AddressConflict", "AddressConflict", "Accepted", "AddressConflict"]
    assert vips(services["demo/t.demo.svc.cluster.local"])[0] == address


def test_allocated_addresses_are_of_both_families_and_stay(admit_files: Any) -> None:
    """Across a restart (the saved addresses are all that is left) and beside newcomers."""
    files = {"a.yaml": service_entry("a", STATIC), "s.yaml": service("s")}
    one = compute(admit_files(files).objects, OPTIONS)
    addresses = vips(served(one)["demo/db.internal"])
    assert [ipaddress.ip_address(text).version for text in addresses] == [4, 6]
    assert addresses[0].startswith("240.240.")
    assert addresses[1].startswith("2001:2:")
    files["0.yaml"] = service_entry("0", "hosts: [a.b, c.d], resolution: DNS")
    two = compute(admit_files(files).objects, OPTIONS, Computation(vips=one.vips))
    assert vips(served(two)["demo/db.internal"]) == addresses
    assert (
        served(two)["demo/s.demo.svc.cluster.local"] == served(one)["demo/s.demo.svc.cluster.local"]
    )


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", [4, 6]),
        ("ipFamilies: [IPv4]", [4]),
        ("ipFamilies: [IPv6]", [6]),
        ("clusterIP: None", []),
    ],
)
def test_service_gets_addresses_of_its_families(
    admit_files: Any, spec: str, expected: list[int]
) -> None:
    found = compute(admit_files({"s.yaml": service("s", spec)}).objects, OPTIONS)
    addresses = vips(served(found)["demo/s.demo.svc.cluster.local"])
    assert [ipaddress.ip_address(text).version for text in addresses] == expected


def test_selector_takes_workloads_of_several_nodes_from_its_own_namespace(admit_files: Any) -> None:
    """By label; one of the same name in another namespace is somebody else."""
    files = {
        "a.yaml": entry("a", "10.0.0.1", labels="{app: db}", node="node1"),
        "b.yaml": entry("b", "10.0.0.2", labels="{app: db}", node="node2"),
        "c.yaml": entry("c", "10.0.0.3", labels="{app: other}"),
        "d.yaml": entry("a", "10.0.0.4", labels="{app: db}").replace("demo", "other"),
        "e.yaml": service_entry("e", f"{STATIC}, workloadSelector: {{labels: {{app: db}}}}"),
    }
    items = served(compute(admit_files(files).objects, OPTIONS)).values()
    endpoints = {
        str(item.addresses[0])
        for item in items
        if isinstance(item, Workload) and "demo/db.internal" in item.services
    }
    assert endpoints == {"10.0.0.1", "10.0.0.2"}


def test_inline_endpoint_at_a_workload_of_the_mesh_is_that_workload(admit_files: Any) -> None:
    """What is in the mesh is not reached around it; it follows when the workload leaves."""
    files = {
        "a.yaml": entry("a", "10.0.0.1", labels="{istio.io/dataplane-mode: ambient}", node="node1"),
        "e.yaml": service_entry("e", f"{STATIC}, endpoints: [{{address: 10.0.0.1}}]"),
    }
    uid = "Kubernetes/networking.istio.io/ServiceEntry/demo/e/10.0.0.1"
    first = admit_files(files)
    one = compute(first.objects, OPTIONS)
    assert served(one)[uid].protocol is TunnelProtocol.HBONE
    assert served(one)[uid].service_account == "a"
    ill = {"node1": {"Kubernetes/networking.istio.io/WorkloadEntry/demo/a": "probe failed"}}
    assert served(one)[uid].healthy
    assert not served(compute(first.objects, OPTIONS, one, ill))[uid].healthy
    two = compute(admit_files({"e.yaml": files["e.yaml"]}, first).objects, OPTIONS, one)
    assert served(two)[uid].protocol is TunnelProtocol.NONE


NODE = "apiVersion: v1\nkind: Node\nmetadata: {name: node1, labels: {topology.kubernetes.io/region: %s, topology.kubernetes.io/zone: z1, topology.istio.io/subzone: rack1}}\n"  # noqa: E501


def test_workload_is_where_its_node_is_unless_it_says_otherwise(admit_files: Any) -> None:
    files = {
        "n.yaml": NODE % "r1",
        "a.yaml": entry("a", "10.0.0.1", node="node1"),
        "b.yaml": entry("b", "10.0.0.2", node="node1").replace(
            "serviceAccount", "locality: r9, serviceAccount"
        ),
        "c.yaml": entry("c", "10.0.0.3", node="node2"),
    }
    first = admit_files(files)
    one = compute(first.objects, OPTIONS)

    def localities(found: Computation) -> list[Locality]:
        return [i.locality for i in served(found).values() if isinstance(i, Workload)]

    assert localities(one) == [Locality("r1", "z1", "rack1"), Locality("r9"), Locality()]
    two = compute(admit_files({**files, "n.yaml": NODE % "r2"}, first).objects, OPTIONS, one)
    assert localities(two)[0] == Locality("r2", "z1", "rack1")


CLOSE = LoadBalancing(LoadBalancingMode.FAILOVER, (Scope.NETWORK, Scope.REGION, Scope.ZONE))
SAME_NODE = LoadBalancing(
    LoadBalancingMode.FAILOVER,
    (Scope.NETWORK, Scope.REGION, Scope.ZONE, Scope.SUBZONE, Scope.NODE),
)
LOCAL = LoadBalancing(LoadBalancingMode.STRICT, (Scope.NODE,))
OBJECT, NAMESPACE = "networking.istio.io/traffic-distribution: PreferSameNode", "PreferClose"


@pytest.mark.parametrize(
    ("spec", "annotation", "namespace", "mesh", "expected"),
    [
        ("", "", "", "", LoadBalancing()),
        ("trafficDistribution: PreferClose", OBJECT, "PreferSameNode", "", CLOSE),
        ("trafficDistribution: PreferSameZone", "", "", "", CLOSE),
        ("trafficDistribution: PreferSameNode", "", "", "", SAME_NODE),
        ("", OBJECT, NAMESPACE, "", SAME_NODE),
        ("", "", NAMESPACE, "PreferSameNode", CLOSE),
        ("", "", "nonsense", "PreferSameNode", SAME_NODE),
        ("", "", "Any", "PreferSameNode", LoadBalancing()),
        ("", "", "", "PreferClose", CLOSE),
        ("internalTrafficPolicy: Local", OBJECT, NAMESPACE, "PreferClose", LOCAL),
        ("publishNotReadyAddresses: true", "", "", "", LoadBalancing(allow_unhealthy=True)),
    ],
)  # fmt: skip
def test_where_the_traffic_distribution_comes_from(
    admit_files: Any, spec: str, annotation: str, namespace: str, mesh: str, expected: LoadBalancing
) -> None:
    """istio-facts 3.6: the object, its annotation, its namespace's; ours: then the mesh's."""
    metadata = (
        f"{{name: demo, annotations: {{networking.istio.io/traffic-distribution: '{namespace}'}}}}"
    )
    files = {
        "s.yaml": service("s", spec, annotations=annotation),
        "n.yaml": f"apiVersion: v1\nkind: Namespace\nmetadata: {metadata}\n",
    }
    options = ComputeOptions(mesh=MeshOptions(traffic_distribution=mesh))
    found = served(compute(admit_files(files).objects, options))
    assert found["demo/s.demo.svc.cluster.local"].load_balancing == expected


@pytest.mark.parametrize(
    ("names", "private"), [("", False), (".", True), ("demo", True), ("., x", False), ("*", False)]
)
def test_service_is_private_when_exported_to_its_namespace_only(
    admit_files: Any, names: str, private: bool
) -> None:
    files = {"s.yaml": service("s", annotations=f"networking.istio.io/exportTo: '{names}'")}
    found = served(compute(admit_files(files).objects, OPTIONS))
    assert found["demo/s.demo.svc.cluster.local"].private is private


def test_everything_is_in_the_meshs_network_unless_it_says_otherwise(admit_files: Any) -> None:
    """Workloads of the mesh are found at inline endpoints there, too."""
    ambient = "{istio.io/dataplane-mode: ambient}"
    files = {
        "a.yaml": entry("a", "10.0.0.1", labels=ambient),
        "b.yaml": entry("b", "10.0.0.2").replace("serviceAccount", "network: n2, serviceAccount"),
        "e.yaml": service_entry("e", f"{STATIC}, endpoints: [{{address: 10.0.0.1}}]"),
        "s.yaml": service("s"),
    }
    options = replace(OPTIONS, mesh=MeshOptions(network="n1"))
    items = served(compute(admit_files(files).objects, options)).values()
    workloads = {i.uid.rpartition("/")[2]: i for i in items if isinstance(i, Workload)}
    assert {uid: item.network for uid, item in workloads.items()} == {
        "a": "n1",
        "b": "n2",
        "10.0.0.1": "n1",
    }
    assert workloads["10.0.0.1"].protocol is TunnelProtocol.HBONE
    assert {vip.network for i in items if isinstance(i, Service) for vip in i.vips} == {"n1"}
