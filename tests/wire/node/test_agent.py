"""The node agent with a ztunnel's end of ZDS in the test: enrolment, drift, restart, stop."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from metalmesh.zds.messages import (
    Ack,
    AddWorkload,
    DelWorkload,
    SnapshotSent,
    decode_request,
    encode_hello,
    encode_response,
)
from tests.support.mesh_node import MeshNode, mesh_node
from tests.support.waits import WAITS, Wait, wait_until

V4, V6 = "10.244.9.11", "fd44:9::11"
#: the bound of the requirement, not of a wait
REPAIR_SECONDS = 5.0
RECEIVE_SECONDS = 5.0


class FakeZtunnel:
    """Connects, says hello, and shows one request at a time."""

    def __init__(self, node: MeshNode) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(RECEIVE_SECONDS)
        self._socket.connect(str(node.directory / "zds.sock"))
        self._socket.send(encode_hello())

    def receive(self) -> tuple[Any, int]:
        """The next request and the inode of the netns that came with it (0: none)."""
        packet, fds, _, _ = socket.recv_fds(self._socket, 1024, 4)
        inodes = [os.fstat(fd).st_ino for fd in fds]
        for fd in fds:
            os.close(fd)
        assert len(inodes) <= 1
        return decode_request(packet), inodes[0] if inodes else 0

    def acknowledge(self, error: str = "") -> None:
        """Answer the outstanding request."""
        self._socket.send(encode_response(Ack(error)))

    def accept_snapshot(self) -> list[tuple[Any, int]]:
        """Acknowledge everything up to SnapshotSent; return the rest."""
        found = []
        while True:
            request, inode = self.receive()
            self.acknowledge()
            if request == SnapshotSent():
                return found
            found.append((request, inode))

    def is_silent(self) -> bool:
        """Whether nothing is waiting to be read right now."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(RECEIVE_SECONDS)
        return False

    def close(self) -> None:
        """Go away."""
        self._socket.close()


@contextlib.contextmanager
def ztunnel(node: MeshNode) -> Iterator[FakeZtunnel]:
    """A ztunnel for the time of the block."""
    fake = FakeZtunnel(node)
    try:
        yield fake
    finally:
        fake.close()


@pytest.fixture
def node():
    with mesh_node() as made:
        yield made


def inode_of(node: MeshNode, name: str) -> int:
    return node.workload(name).path.stat().st_ino


def test_snapshot_carries_names_and_netns_of_captured_workloads_only(node):
    workload = node.declare("w", V4, V6)
    node.declare("plain", "10.244.9.12", labels={"istio.io/dataplane-mode": "none"})
    node.declare("down", "10.244.9.13")
    node.up("w")
    node.up("plain")
    node.start_agent()
    with ztunnel(node) as fake:
        assert fake.accept_snapshot() == [
            (AddWorkload(workload.uid, "w", node.unique, "w"), inode_of(node, "w"))
        ]


def test_workloads_come_and_go_while_a_ztunnel_is_connected(node):
    node.start_agent()
    with ztunnel(node) as fake:
        assert fake.accept_snapshot() == []
        workload = node.declare("w", V4)
        node.up("w")
        assert fake.receive() == (
            AddWorkload(workload.uid, "w", node.unique, "w"),
            inode_of(node, "w"),
        )
        fake.acknowledge()
        node.down("w")
        assert fake.receive() == (DelWorkload(workload.uid), 0)
        fake.acknowledge()
        # nothing of the agent keeps the namespace alive, and the next one is a new one
        node.up("w")
        request, inode = fake.receive()
        assert isinstance(request, AddWorkload)
        assert inode == inode_of(node, "w")


def test_withdrawn_spec_leaves_the_ztunnel_and_stays_redirected(node):
    workload = node.declare("w", V4)
    node.up("w")
    node.start_agent()
    with ztunnel(node) as fake:
        fake.accept_snapshot()
        node.withdraw("w")
        assert fake.receive() == (DelWorkload(workload.uid), 0)
        assert "redirect to :15001" in node.nft("list", "ruleset", inside="w")


def test_requests_are_in_lock_step_and_a_refused_one_comes_again(node):
    node.declare("a", V4)
    node.declare("b", "10.244.9.12")
    node.up("a")
    node.up("b")
    node.start_agent()
    with ztunnel(node) as fake:
        first, _ = fake.receive()
        assert fake.is_silent()
        fake.acknowledge("failure to start proxy : test")
        second, _ = fake.receive()
        assert {first.name, second.name} == {"a", "b"}
        fake.acknowledge()
        assert fake.receive() == (SnapshotSent(), 0)
        fake.acknowledge()
        # sent again within its retry time
        fake._socket.settimeout(WAITS["workload"].seconds)
        assert fake.receive()[0] == first


def test_newest_ztunnel_gets_additions_and_all_get_removals(node):
    node.start_agent()
    with ztunnel(node) as old, ztunnel(node) as new:
        old.accept_snapshot()
        new.accept_snapshot()
        workload = node.declare("w", V4)
        node.up("w")
        assert new.receive()[0] == AddWorkload(workload.uid, "w", node.unique, "w")
        new.acknowledge()
        assert old.is_silent()
        assert node.metric("ztunnel_connected") == 2
        new.close()
        # the one that remains learns what it missed
        assert old.receive()[0] == AddWorkload(workload.uid, "w", node.unique, "w")
        old.acknowledge()
        wait_until(lambda: node.metric("ztunnel_connected") == 1, WAITS["metric"])
        node.down("w")
        assert old.receive()[0] == DelWorkload(workload.uid)


@pytest.mark.parametrize("packet", [b"\x08\x02", b"\xff\xff\xff", b"x" * 1100])
def test_peer_that_speaks_something_else_is_dropped(node, packet):
    node.start_agent()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(RECEIVE_SECONDS)
        peer.connect(str(node.directory / "zds.sock"))
        peer.send(packet)
        assert peer.recv(1024) == b""
    with ztunnel(node) as fake:
        assert fake.accept_snapshot() == []


def test_socket_is_for_root_and_the_ztunnels_group(node):
    node.start_agent()
    assert (node.directory / "zds.sock").stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize(
    ("damage", "inside", "sign"),
    [
        (["nft", "delete", "table", "inet", "istio-ambient-nat"], True, "istio-ambient-nat"),
        (["nft", "flush", "ruleset"], True, "redirect to :15001"),
        (["ip", "rule", "del", "priority", "32764"], True, ""),
        (["nft", "flush", "ruleset"], False, "metalmesh-policy"),
    ],
)
def test_drift_is_repaired_in_time_counted_and_logged(node, damage, inside, sign):
    workload = node.declare("w", V4, V6)
    node.know(workload)
    node.up("w")
    node.start_agent()
    place = node.workload("w") if inside else node.netns
    look = ["ip", "rule"] if damage[0] == "ip" else ["nft", "list", "ruleset"]
    sign = sign or "32764"
    assert sign in place.run(*look)
    place.run(*damage)
    wait_until(lambda: sign in place.run(*look), Wait(REPAIR_SECONDS, "the bound"), what="repair")
    wait_until(lambda: node.metric("metalmesh_node_drift_repairs_total") >= 1, WAITS["metric"])
    assert "somebody changed it, restored" in node.log()


def test_idle_agent_reports_no_drift(node):
    node.declare("w", V4, V6)
    node.up("w")
    node.start_agent()
    rounds = node.metric("metalmesh_node_workloads")
    # each interval one job looks at its object; all of them have looked after this many
    node.up("w")
    wait_until(lambda: node.get("/metrics")[0] == 200 and rounds >= 0, WAITS["metric"])
    assert node.metric("metalmesh_node_drift_repairs_total") == 0


def test_killed_agent_leaves_every_rule_and_a_new_one_changes_nothing(node):
    node.know(node.declare("w", V4, V6))
    node.up("w")
    agent = node.start_agent()
    before = [node.nft("-a", "list", "ruleset", inside="w"), node.nft("-a", "list", "ruleset")]
    agent.kill()
    agent.wait(10)
    after = [node.nft("-a", "list", "ruleset", inside="w"), node.nft("-a", "list", "ruleset")]
    assert after == before
    node.start_agent()
    again = [node.nft("-a", "list", "ruleset", inside="w"), node.nft("-a", "list", "ruleset")]
    assert again == before


def test_two_workloads_with_one_address_first_stays_and_metric_shows_it(node):
    node.declare("first", V4)
    node.up("first")
    node.start_agent()
    node.declare("again", V4)
    wait_until(lambda: node.metric("metalmesh_node_workload_spec_errors") == 1, WAITS["metric"])
    assert f"{node.unique}/again" in node.log()
    with ztunnel(node) as fake:
        assert [request.name for request, _ in fake.accept_snapshot()] == ["first"]


def test_spec_that_becomes_wrong_leaves_its_workload_served(node):
    node.declare("w", V4)
    node.up("w")
    node.start_agent()
    with ztunnel(node) as fake:
        assert len(fake.accept_snapshot()) == 1
        (node.directory / "workloads" / f"{node.unique}-w.yaml").write_text("{")
        wait_until(lambda: node.metric("metalmesh_node_workload_spec_errors") == 1, WAITS["metric"])
        assert fake.is_silent()
        assert node.debug()["workloads"][0]["served"]


@pytest.mark.parametrize("tool", [["ip", "netns", "del"], ["umount", "-l"]], ids=lambda t: t[0])
def test_deleted_netns_is_an_error_of_its_workload_alone(node, tool):
    node.declare("w", V4)
    node.declare("v", "10.244.9.12")
    node.up("w")
    node.up("v")
    node.start_agent()
    path = node.workload("w").path
    subprocess.run([*tool, path.name if tool[0] == "ip" else str(path)], check=True)
    # a restarted agent finds it like that
    node.stop_agents()
    node.start_agent()
    wait_until(lambda: f"netns:{node.unique}-w" in node.debug()["notInForce"], WAITS["drift"])
    assert "was deleted without" in node.log()
    assert node.get("/healthz/ready")[0] == 200
    node.up("w")
    wait_until(lambda: node.debug()["notInForce"] == {}, WAITS["drift"])


def test_records_that_vanish_take_no_workload_from_the_ztunnel(node):
    node.declare("w", V4)
    node.up("w")
    node.start_agent()
    with ztunnel(node) as fake:
        assert len(fake.accept_snapshot()) == 1
        # in one step: a record removed before its directory is a workload that went down
        (node.directory / "run" / "netns").rename(node.directory / "taken")
        node.declare("other", "10.244.9.12")
        wait_until(lambda: "has vanished" in node.log(), WAITS["workload"])
        # long enough for every job to have looked
        with pytest.raises(TimeoutError):
            fake.receive()
