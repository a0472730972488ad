"""A lab's plan: what an inventory becomes, and what is said when it is wrong."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.driver.errors import InventoryError
from lab.driver.plan import parse_plan, underlays

INVENTORY: dict[str, Any] = {
    "all": {
        "children": {
            "mesh_control_plane": {"hosts": {"cp1": {"lab_index": 11}}},
            "mesh_nodes": {"hosts": {"node1": {"lab_index": 21, "lab_routes": ["10.244.1.0/24"]}}},
            "mesh_waypoints": None,
            "mesh_external": {"hosts": {"ext1": {"lab_index": 31, "lab_image": "bookworm"}}},
        }
    }
}


def test_plan_of_an_inventory_names_every_object() -> None:
    """Names, addresses and groups follow from the description and the lab's number alone."""
    plan = parse_plan(INVENTORY, lab="blue-1", number=26)
    node = plan.node("node1")
    assert [n.name for n in plan.nodes] == ["cp1", "ext1", "node1"]
    assert (plan.fabric, plan.host_link) == ("mm-lab-blue-1-fab", "mm-lab26")
    assert (node.object_name, node.link) == ("mm-lab-blue-1-node1", "mm-node1")
    assert (node.address_v4, node.address_v6) == ("10.77.26.21", "fd77:0:0:1a::21")
    assert node.mac == "02:6d:6d:1a:00:15"
    assert node.groups == ("all", "mesh_nodes")
    assert node.routes == ("10.244.1.0/24",)
    assert (node.image, plan.node("ext1").image) == ("trixie", "bookworm")


def test_addresses_lie_in_the_underlay_of_their_lab() -> None:
    """Two labs side by side share no network."""
    for number in (0, 9, 250):
        v4, v6 = underlays(number)
        node = parse_plan(INVENTORY, lab="x", number=number).node("cp1")
        assert ipaddress.IPv4Address(node.address_v4) in v4
        assert ipaddress.IPv6Address(node.address_v6) in v6


def test_host_named_twice_is_one_node_in_both_groups() -> None:
    """As in Ansible: mentioning a host again adds a group, its variables stand anywhere."""
    inventory = {
        "mesh_nodes": {"hosts": {"node1": {"lab_index": 21}}},
        "mesh_waypoints": {"hosts": {"node1": None}},
    }
    plan = parse_plan(inventory, lab="x", number=1)
    assert [(n.name, n.index) for n in plan.nodes] == [("node1", 21)]
    assert plan.nodes[0].groups == ("mesh_nodes", "mesh_waypoints")


def test_longest_allowed_names_fit_into_a_link_name() -> None:
    """The kernel takes 15 characters for a link, 64 for the host name of a machine."""
    inventory = {"g": {"hosts": {"n" + "o" * 10: {"lab_index": 21}}}}
    plan = parse_plan(inventory, lab="a" * 40, number=250)
    assert len(plan.nodes[0].link) <= 15
    assert len(plan.host_link) <= 15
    assert len(plan.nodes[0].object_name) <= 64


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ({}, ["no host"]),
        ({"node1": {}}, ["node1", "lab_index", "2 to 250"]),
        ({"node1": {"lab_index": 254}}, ["node1", "lab_index", "254"]),
        ({"node1": {"lab_index": "21"}}, ["node1", "lab_index"]),
        ({"node1": {"lab_index": True}}, ["node1", "lab_index"]),
        ({"fab": {"lab_index": 21}}, ["'fab'"]),
        ({"node-1": {"lab_index": 21}}, ["'node-1'", "letters"]),
        ({"node1": {"lab_index": 21, "lab_image": "buster"}}, ["node1", "lab_image", "trixie"]),
        ({"node1": {"lab_index": 21, "lab_routes": "10.0.0.0/8"}}, ["node1", "lab_routes", "list"]),
        ({"node1": {"lab_index": 21, "lab_routes": ["10.0.0.1/8"]}}, ["node1", "10.0.0.1/8"]),
        (
            {"node1": {"lab_index": 21}, "node2": {"lab_index": 21}},
            ["node1", "node2", "lab_index 21"],
        ),
        (
            {
                "a": {"lab_index": 2, "lab_routes": ["10.1.0.0/24"]},
                "b": {"lab_index": 3, "lab_routes": ["10.1.0.0/24"]},
            },
            ["'a'", "'b'", "10.1.0.0/24"],
        ),
    ],
)
def test_wrong_inventory_is_refused_with_host_and_variable(
    hosts: dict[str, Any], words: list[str]
) -> None:
    """Every message names the host, the variable and what would be right."""
    with pytest.raises(InventoryError) as caught:
        parse_plan({"all": {"hosts": hosts}}, lab="x", number=1)
    for word in words:
        assert word in str(caught.value)


def test_group_that_is_no_mapping_is_refused() -> None:
    """A list of hosts below a group is a frequent slip."""
    with pytest.raises(InventoryError, match="group 'mesh_nodes'"):
        parse_plan({"mesh_nodes": ["node1"]}, lab="x", number=1)


def test_unknown_node_is_answered_with_the_known_ones() -> None:
    """A typing error on the command line shows what there is."""
    with pytest.raises(InventoryError, match="cp1, ext1, node1"):
        parse_plan(INVENTORY, lab="x", number=1).node("node9")


def test_inventory_of_this_repository_has_the_default_topology() -> None:
    """DESIGN §6: cp1, node1, node2 and ext1 outside of the mesh."""
    path = Path(__file__).parents[3] / "inventory" / "lab" / "hosts.yml"
    plan = parse_plan(yaml.safe_load(path.read_text()), lab="default", number=0)
    assert {n.name: n.groups[-1] for n in plan.nodes} == {
        "cp1": "mesh_control_plane",
        "node1": "mesh_nodes",
        "node2": "mesh_nodes",
        "ext1": "mesh_external",
    }
