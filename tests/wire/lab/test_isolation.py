"""Machines, labs and the host do not disturb one another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.driver import Lab, cgroup, host, machine, names, network, preflight, state
from lab.driver.errors import LabError, PreflightError
from lab.driver.host import Progress
from lab.driver.plan import MAX_NUMBER
from tests.support.capture import Link, capture
from tests.support.netns import in_netns
from tests.wire.lab.conftest import Sandbox
from tests.wire.lab.test_lifecycle import sh

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[3]
WHAT_THE_MESH_NEEDS = """
set -e
ip netns add w
ip link add veth0 type veth peer name veth1 netns w
ip netns exec w nft add table inet made-by-root
ip netns exec w sysctl -qw net.ipv4.ip_forward=1
ip rule add fwmark 0x111/0xfff table 100 pref 9
systemd-run --quiet --wait -p DynamicUser=yes -p NetworkNamespacePath=/run/netns/w \\
    -p 'AmbientCapabilities=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_NET_RAW' nft add table inet made-by-user
ip netns exec w nft list tables
ip rule del pref 9
ip netns del w
"""


def reaches(lab: Lab, node: str, address: str) -> bool:
    """Whether a node gets an answer to a ping."""
    command = lab.ssh_command(node, f"ping -c 1 -W 1 {address}")
    return subprocess.run(command, capture_output=True).returncode == 0


def test_two_labs_side_by_side(sandbox: Sandbox, pair: Lab) -> None:
    """They share no address, do not reach each other, and one going leaves the other."""
    other = sandbox.up(one=21)
    ours, theirs = other.plan.node("one"), pair.plan.node("one")
    assert ours.address_v4 != theirs.address_v4
    assert reaches(pair, "two", theirs.address_v4)
    assert reaches(pair, "two", theirs.address_v6)
    assert not reaches(pair, "two", ours.address_v4)
    assert not reaches(pair, "two", ours.address_v6)
    sandbox.down()
    assert sh(pair, "one", "hostname") == "one"
    assert sandbox.traces() == {}


def test_every_machine_has_a_control_group_of_its_own(pair: Lab) -> None:
    """Or stopping a unit in one machine would kill the same unit of another."""
    groups = [cgroup.processes(node.object_name) for node in pair.plan.nodes]
    if host.has_systemd():
        groups = [
            {pid} for node in pair.plan.nodes if (pid := machine.find_leader(node.object_name))
        ]
    assert all(groups)
    assert not groups[0] & groups[1]
    sh(pair, "one", "systemctl stop dbus.socket dbus.service")
    assert sh(pair, "two", "systemctl is-active dbus.service || systemctl is-active dbus.socket")
    sh(pair, "one", "systemctl start dbus.socket")


def test_all_units_of_a_machine_are_in_order(pair: Lab) -> None:
    """A failed unit in a bare machine would hide one that we break."""
    for node in ("one", "two"):
        assert sh(pair, node, "systemctl is-system-running") == "running"


def test_machine_can_do_what_the_mesh_needs(pair: Lab) -> None:
    """Namespaces, rules, marks and network settings, also as an unprivileged service user."""
    assert (
        sh(pair, "one", WHAT_THE_MESH_NEEDS) == "table inet made-by-root\ntable inet made-by-user"
    )


@pytest.mark.parametrize(
    "command",
    ["sysctl -w vm.swappiness=61", "date -s @0", "sysctl -w kernel.hostname=evil"],
)
def test_machine_cannot_change_the_host(pair: Lab, command: str) -> None:
    """The clock and most of /proc/sys are the host's."""
    before = Path("/proc/sys/vm/swappiness").read_text(), Path("/etc/hostname").read_text()
    done = subprocess.run(pair.ssh_command("one", command), capture_output=True, text=True)
    assert done.returncode != 0
    after = Path("/proc/sys/vm/swappiness").read_text(), Path("/etc/hostname").read_text()
    assert before == after


def test_nothing_leaves_the_fabric(pair: Lab) -> None:
    """Nodes have no way to other networks of the host, and none to the internet."""
    routes = sh(pair, "one", "ip route get 192.0.2.99")
    assert "via" in routes  # they have a default gateway, as any machine
    assert not reaches(pair, "one", "192.0.2.99")
    command = ["ip", "-j", "route", "show", "default"]
    done = subprocess.run(
        ["ip", "netns", "exec", pair.plan.fabric, *command], capture_output=True, text=True
    )
    assert done.stdout.strip() in ("", "[]")


def test_capture_sees_a_nodes_packets_on_the_fabric(pair: Lab, tmp_path: Path) -> None:
    """`lab capture` and the tests look at the fabric's end of the node's link."""
    two = pair.plan.node("two").address_v4
    link = Link(Path("/run/netns") / pair.plan.fabric, pair.plan.node("one").link)
    with capture(link, "icmp", directory=tmp_path) as recording:
        assert reaches(pair, "one", two)
    assert two in {packet.destination.address for packet in recording.packets}


def test_capture_command_records_on_that_link(pair: Lab, tmp_path: Path) -> None:
    """The command of the verb, with further arguments for tcpdump."""
    file = tmp_path / "one.pcap"
    command = pair.capture_command("one", "-c", "2", "-w", str(file), "icmp")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as recorder:
        assert recorder.stderr is not None
        assert any("listening on" in line for line in recorder.stderr)
        assert reaches(pair, "one", pair.plan.node("two").address_v4)
        assert recorder.wait(timeout=10) == 0
    assert file.stat().st_size >= 24 + 2 * (16 + 98)  # pcap header, two records of a ping


def test_lab_routes_lead_to_their_node(sandbox: Sandbox) -> None:
    """The fabric's router sends a node's networks to it: what the mesh's workloads live in."""
    path = sandbox.inventory(routes={"one": ["10.250.1.0/24"]}, one=21, two=22)
    lab = Lab.up(sandbox.name, path, quiet=True)
    sh(lab, "one", "ip addr add 10.250.1.7/32 dev lo")
    assert reaches(lab, "two", "10.250.1.7")
    sh(lab, "one", "ip addr del 10.250.1.7/32 dev lo")
    assert not reaches(lab, "two", "10.250.1.7")


def test_taken_addresses_are_refused_by_name() -> None:
    """A route to the underlay elsewhere would swallow the lab's traffic."""
    number, link = MAX_NUMBER, "mm-ttaken"
    assert preflight.find_conflict(number) is None

    def take(verb: str) -> None:
        if verb == "add":
            subprocess.run(["ip", "link", "add", link, "type", "bridge"], check=True)
            subprocess.run(["ip", "link", "set", link, "up"], check=True)
            address = f"10.77.{number}.9/24"
            subprocess.run(["ip", "addr", "add", address, "dev", link], check=True)
        else:
            subprocess.run(["ip", "link", "del", link], check=True)

    take("add")
    try:
        with pytest.raises(PreflightError, match=rf"'x'.*10\.77\.{number}\.0/24.*'{link}'"):
            preflight.check_addresses("x", number)
        with pytest.raises(PreflightError, match="no free underlay"):
            preflight.free_number(set(range(1, number)))
    finally:
        take("del")
    assert preflight.find_conflict(number) is None


def test_missing_commands_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks something reads how to get it."""
    monkeypatch.setitem(preflight.COMMANDS, "no-such-command", "some-package")
    with pytest.raises(PreflightError, match=r"some-package; get it by `make setup`"):
        preflight.check_host()


def test_commands_on_one_lab_wait_for_each_other(sandbox: Sandbox) -> None:
    """Two invocations must not build into each other."""
    command = [sys.executable, "-m", "lab.driver", "--name", sandbox.name, "down"]
    with state.lock(sandbox.name, Progress(sandbox.name, quiet=True)):
        waiting = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert "waiting for another command" in waiting.stderr.readline()
        assert waiting.poll() is None
    with waiting:
        assert waiting.wait(timeout=10) == 0
    assert not (names.RUN_ROOT / f"{sandbox.name}.lock").exists()


def test_unknown_lab_is_answered_with_the_known_ones(pair: Lab) -> None:
    """A typing error in --name shows what there is."""
    with pytest.raises(LabError, match=pair.plan.name):
        Lab.open("nosuchlab")


def test_default_route_of_the_fabric_namespace_is_its_own(pair: Lab) -> None:
    """Forwarding is on in the fabric only; the host's own setting is not touched."""
    path = Path("/run/netns") / pair.plan.fabric
    read = Path("/proc/sys/net/ipv4/ip_forward").read_text
    assert in_netns(path, read).strip() == "1"
    assert network.exists(pair.plan.fabric)
