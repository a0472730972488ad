"""A workload that cannot be captured is cut off, and comes back by itself."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator

import pytest

from metalmesh.constants import TABLE_NAT
from metalmesh.node.guard import MAX_REPAIRS
from tests.support.mesh_node import MeshNode, fetch, mesh_node, serving
from tests.support.netns import Netns
from tests.support.waits import WAITS, Wait, wait_until

V4 = "10.244.9.11"
OUTSIDE, PORT = "198.18.0.2", 8080
#: what a captured connection meets here, where no ztunnel listens
CAPTURED = "ConnectionRefusedError"
FIGHT = Wait(40.0, f"{MAX_REPAIRS} repairs, of which there is one a second")


@pytest.fixture
def node():
    with mesh_node() as made, serving(lambda: made.outside.listen(PORT), lambda _: b"outside"):
        made.know(made.declare("w", V4))
        made.up("w")
        made.outside.run("ip", "route", "replace", "10.244.9.0/24", "via", "198.18.0.1")
        yield made


@contextlib.contextmanager
def stolen(inside: Netns) -> Iterator[None]:
    """Somebody else owns a table of our name: the kernel lets nobody but him change it."""
    thief = inside.popen("nft", "-i", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert thief.stdin is not None
    try:
        # one transaction: an agent at work gets no turn in between
        line = f"delete table inet {TABLE_NAT}; add table inet {TABLE_NAT} {{ flags owner; }}\n"
        thief.stdin.write(line.encode())
        thief.stdin.flush()
        wait_until(lambda: "flags owner" in rules(inside), WAITS["drift"], what="stolen")
        yield
    finally:
        thief.stdin.close()
        thief.wait(10)  # its table goes with it


def rules(inside: Netns) -> str:
    return inside.run("nft", "list", "ruleset")


def clear(node: MeshNode) -> str:
    """What a connection of the workload meets."""
    return fetch(node.workload("w"), OUTSIDE, PORT, timeout_seconds=0.5)


def not_in_force(node: MeshNode) -> str:
    return str(node.debug()["notInForce"].get(f"netns:{node.unique}-w", ""))


def test_without_an_agent_the_theft_opens_the_workload(node):
    """The negative twin of everything here."""
    assert clear(node) == CAPTURED
    with stolen(node.workload("w")):
        assert clear(node) == "outside"


def test_workload_that_cannot_be_captured_is_cut_off_and_comes_back(node):
    node.start_agent()
    assert clear(node) == CAPTURED
    with stolen(node.workload("w")):
        wait_until(lambda: "cut off" in not_in_force(node), WAITS["drift"])
        assert clear(node) not in ("outside", CAPTURED)
        assert node.metric("metalmesh_node_cut_offs_total") == 1
        assert "cannot be captured" in node.log()
        assert node.get("/healthz/ready")[0] == 200  # one workload's trouble is not the node's
    wait_until(lambda: not not_in_force(node), WAITS["drift"])
    wait_until(lambda: clear(node) == CAPTURED, WAITS["drift"], what="captured again")
    with serving(lambda: listener(node), lambda _: b"plain in"):
        assert fetch(node.outside, V4, 15008) == "plain in"  # the link is whole in both directions


def listener(node: MeshNode) -> socket.socket:
    return node.workload("w").listen(15008, address=V4)


def test_agent_that_starts_into_the_theft_cuts_off_too(node):
    with stolen(node.workload("w")):
        node.start_agent()
        wait_until(lambda: "cut off" in not_in_force(node), WAITS["drift"])
        assert clear(node) not in ("outside", CAPTURED)


def test_workload_outside_of_the_mesh_keeps_its_network(node):
    node.know(node.declare("plain", "10.244.9.12", labels={"istio.io/dataplane-mode": "none"}))
    node.up("plain")
    node.start_agent()
    inside = node.workload("plain")
    inside.run("nft", "add table inet foreign")
    with stolen(node.workload("w")):
        wait_until(lambda: "cut off" in not_in_force(node), WAITS["drift"])
        assert fetch(inside, OUTSIDE, PORT) == "outside"


def test_who_undoes_it_again_and_again_loses_the_network(node):
    """Repairs alone would leave a gap each time."""
    node.start_agent()
    inside = node.workload("w")

    def given_up() -> bool:
        with contextlib.suppress(RuntimeError):
            inside.run("nft", "delete", "table", "inet", TABLE_NAT)
        return "again and again" in not_in_force(node)

    wait_until(given_up, FIGHT)
    inside.run("nft", "flush", "ruleset")
    assert clear(node) not in ("outside", CAPTURED)
