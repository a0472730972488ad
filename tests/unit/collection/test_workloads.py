"""From `mesh_workloads` to objects of the mesh."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.metalmesh.ambient.plugins.module_utils import _workloads
from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError

OWN = ["10.77.0.21", "fd77::21"]
CIDRS = ["10.244.1.0/24", "fd77:244:1::/64"]


def workload(**changes: Any) -> dict[str, Any]:
    return {"name": "echo", "namespace": "demo", "service_account": "echo", "index": 10} | changes


def plan(*definitions: Any, cidrs: list[str] | None = None) -> list[dict[str, Any]]:
    networks = CIDRS if cidrs is None else cidrs
    return _workloads.plan_workloads(list(definitions), "node1", networks, OWN)


def test_index_gives_an_address_of_every_network() -> None:
    [planned] = plan(workload(labels={"app": "echo"}, ports={"http": 8080}))
    assert planned["netns"] == "demo-echo"
    assert planned["addresses"] == ["10.244.1.10", "fd77:244:1::a"]
    assert planned["entry"] == {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": "echo",
            "namespace": "demo",
            "annotations": {
                "ambient.metalmesh.io/node": "node1",
                "ambient.metalmesh.io/addresses": "fd77:244:1::a",
            },
            "labels": {"app": "echo"},
        },
        "spec": {"address": "10.244.1.10", "serviceAccount": "echo", "ports": {"http": 8080}},
    }


HOST = {"name": "db", "namespace": "shop", "netns": "host"}


def test_workload_of_the_machine_has_its_addresses() -> None:
    [planned] = plan(HOST | {"exclude_inbound_ports": [9187, "9200-9300"]})
    assert (planned["netns"], planned["addresses"]) == ("host", OWN)
    assert planned["entry"]["metadata"]["annotations"] == {
        "ambient.metalmesh.io/node": "node1",
        "ambient.metalmesh.io/addresses": "fd77::21",
        "ambient.metalmesh.io/netns": "host",
        "ambient.metalmesh.io/exclude-inbound-ports": "9187,9200-9300",
    }
    [planned] = plan(HOST | {"addresses": ["fd77::21"]})
    assert planned["addresses"] == ["fd77::21"]


def test_mode_of_the_workload_becomes_its_label() -> None:
    [planned] = plan(workload(dataplane_mode="none"))
    assert planned["entry"]["metadata"]["labels"] == {"istio.io/dataplane-mode": "none"}


def test_store_gets_namespaces_and_accounts_once() -> None:
    planned = plan(workload(), workload(name="other", index=11))
    objects = _workloads.store_objects(planned, {"istio.io/dataplane-mode": "ambient"})
    kinds = [item["kind"] for item in objects]
    assert kinds == ["Namespace", "ServiceAccount", "WorkloadEntry", "WorkloadEntry"]


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ("echo", "mesh_workloads[0] of node1: is str"),
        (workload(colour="red"), "unknown key colour"),
        (workload(netns="other"), "netns: 'other' is not host"),
        (HOST | {"index": 3}, "index: a workload with netns: host has the machine's addresses"),
        (HOST | {"addresses": ["10.9.9.9"]}, "addresses: 10.9.9.9 is none of the machine's"),
        (workload(name="Echo"), "name: 'Echo' is no DNS label"),
        ({"name": "a", "index": 1}, "namespace: None is no DNS label"),
        (workload(index="10"), "index: '10' is no int"),
        (workload(index=True), "index: True is no int"),
        (workload(index=255), "index: 255 is not in 10.244.1.0/24"),
        (workload(index=0), "index: 0 is not in"),
        (workload(index=None), "needs either index or addresses"),
        (workload(addresses=["10.244.1.5"]), "needs either index or addresses"),
        (workload(index=None, addresses=["10.9.9.9"]), "in none of the networks of this node"),
        (workload(index=None, addresses=["ten"]), "addresses: 'ten'"),
    ],
)
def test_wrong_workload_is_refused_with_its_place_and_key(definition: Any, words: str) -> None:
    with pytest.raises(ModuleError) as error:
        plan(definition)
    assert words in str(error.value)


def test_index_without_networks_is_refused() -> None:
    with pytest.raises(ModuleError, match="index needs mesh_pod_cidrs"):
        plan(workload(), cidrs=[])


def test_two_workloads_cannot_share_an_address_or_a_namespace() -> None:
    with pytest.raises(ModuleError, match=r"demo/other and demo/echo have 10\.244\.1\.10"):
        plan(workload(), workload(name="other"))
    with pytest.raises(ModuleError, match="have a-b-c"):
        plan(workload(namespace="a", name="b-c"), workload(namespace="a-b", name="c", index=11))
