"""WorkloadEntry."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

from typing import Any

import pytest

from metalmesh.model.workload import Locality

META = """{name: echo, namespace: demo, labels: {app: echo, tier: a}, annotations: {
  ambient.metalmesh.io/node: node2, ambient.metalmesh.io/addresses: "fd00::b, 10.0.0.9"}}"""


def test_everything_of_an_entry_is_read(read: Any) -> None:
    entry = read(
        "WorkloadEntry",
        "address: 10.244.2.11\nserviceAccount: echo-sa\nlabels: {tier: b}\nports: {http: 8080}\n"
        "locality: eu/eu-1/r1\nweight: 5\nnetwork: lan",
        META,
    )
    assert list(map(str, entry.addresses)) == ["10.244.2.11", "fd00::b", "10.0.0.9"]
    assert entry.labels == {"app": "echo", "tier": "b"}
    assert (entry.node, entry.netns) == ("node2", "demo-echo")
    assert (entry.service_account, entry.weight, entry.network) == ("echo-sa", 5, "lan")
    assert entry.locality == Locality("eu", "eu-1", "r1")
    assert entry.ports == {"http": 8080}


def test_absent_fields_have_istios_defaults(read: Any) -> None:
    entry = read("WorkloadEntry", "address: 10.0.0.1")
    assert (entry.service_account, entry.weight, entry.node) == ("default", 1, "")


def test_host_name_takes_the_place_of_addresses(read: Any) -> None:
    entry = read("WorkloadEntry", "address: db.example.com")
    assert (entry.hostname, entry.addresses) == ("db.example.com", ())


WRONG = [
    ("serviceAccount: a", "spec.address: is required"),
    ("address: ''", "spec.address: must not be empty"),
    ("address: unix:///run/x", "spec.address: unix sockets are not supported; give an IP address"),
    ("address: 10.0.0.256", "spec.address: '10.0.0.256' is neither an IP address nor a host name"),
    ("address: a b", "spec.address: 'a b' is neither an IP address nor a host name"),
    ("address: 127.0.0.1", "spec.address: 127.0.0.1 cannot be the address of a workload"),
    ("address: 0.0.0.0", "spec.address: 0.0.0.0 cannot be the address of a workload"),
    ("address: 224.0.0.1", "spec.address: 224.0.0.1 cannot be the address of a workload"),
    ("address: 10.0.0.1\nports: {a: 0}", "spec.ports.a: must be 1 to 65535, got 0"),
    ("address: 10.0.0.1\nports: {a: '80'}", "spec.ports.a: must be an integer, got a string"),
    ("address: 10.0.0.1\nweight: -1", "spec.weight: must be 0 to 4294967295, got -1"),
    ("address: 10.0.0.1\nlocality: a/b/c/d", "spec.locality: 'a/b/c/d' has more than region/zone/subzone"),
    ("address: 10.0.0.1\nserviceAccount: A/b", "spec.serviceAccount: 'A/b' must be lower-case as in DNS"),
    ("adress: 10.0.0.1", "spec.adress: unknown field; did you mean address?"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=[row[0] for row in WRONG])
def test_fault_names_field_and_remedy(read: Any, case: tuple[str, str]) -> None:
    assert case[1] in read("WorkloadEntry", case[0])


def test_bad_further_address_names_the_annotation(read: Any) -> None:
    (error,) = read("WorkloadEntry", "address: 10.0.0.1", META.replace("10.0.0.9", "x"))
    assert error == (
        "metadata.annotations[ambient.metalmesh.io/addresses]: ' x' is not an IP address; separate "
        "addresses by commas"
    )


@pytest.mark.parametrize("node", ["''", "Node2", "node 2", "-a"])
def test_bad_node_name_names_the_annotation(read: Any, node: str) -> None:
    (error,) = read("WorkloadEntry", "address: 10.0.0.1", META.replace("node2", node))
    assert error.startswith("metadata.annotations[ambient.metalmesh.io/node]: ")
    assert "is not a node name" in error
