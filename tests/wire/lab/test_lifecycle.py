"""A lab comes up quickly, completes itself, restarts, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import time

import pytest
import yaml

from lab.driver import Lab, machine, state
from tests.wire.lab.conftest import Sandbox

pytestmark = pytest.mark.root

UP_SECONDS = 5.0
REBOOT_SECONDS = 3.0


def sh(lab: Lab, node: str, command: str) -> str:
    """Run a command on a node; its output, or a failure with its errors."""
    done = subprocess.run(lab.ssh_command(node, command), capture_output=True, text=True)
    assert done.returncode == 0, f"{node}: {command}: {done.stderr}"
    return done.stdout.strip()


def leaders(lab: Lab) -> dict[str, int | None]:
    """Process id of every machine's PID 1."""
    return {node.name: machine.find_leader(node.object_name) for node in lab.plan.nodes}


def test_up_within_bound_and_down_without_a_trace(sandbox: Sandbox) -> None:
    """Four nodes answer ssh within 5 s with the image cached; down restores the host."""
    sandbox.up(one=21)  # builds the image, when this is the first lab of the machine
    sandbox.down()
    started_at = time.monotonic()
    lab = sandbox.up(one=21, two=22, three=23, four=24)
    seconds = time.monotonic() - started_at
    names = [sh(lab, node.name, "hostname") for node in lab.plan.nodes]
    assert names == ["four", "one", "three", "two"]
    assert seconds < UP_SECONDS
    seen = sandbox.traces()
    assert {"namespaces", "links", "mounts", "processes", "control groups", "files"} <= set(seen)
    sandbox.down()
    assert sandbox.traces() == {}


def test_up_again_changes_nothing(sandbox: Sandbox) -> None:
    """Idempotent: machines that run are left alone, and it takes well under a second."""
    lab = sandbox.up(one=21, two=22)
    before = leaders(lab)
    started_at = time.monotonic()
    assert leaders(sandbox.up(one=21, two=22)) == before
    assert time.monotonic() - started_at < 1.0


def test_up_resumes_what_is_broken_and_only_that(sandbox: Sandbox) -> None:
    """A node that lost its power comes back with its files; its neighbour does not notice."""
    lab = sandbox.up(one=21, two=22)
    before = leaders(lab)
    sh(lab, "one", "echo kept > /root/file && sync")
    lab.kill(["one"])
    assert leaders(lab)["one"] is None
    after = leaders(sandbox.up(one=21, two=22))
    assert after["one"] not in (None, before["one"])
    assert after["two"] == before["two"]
    assert sh(lab, "one", "cat /root/file") == "kept"


def test_up_follows_the_inventory(sandbox: Sandbox) -> None:
    """A node that is added appears, one that is removed disappears, others keep running."""
    lab = sandbox.up(one=21, two=22)
    before = leaders(lab)
    lab = sandbox.up(one=21, three=23)
    after = leaders(lab)
    assert after["one"] == before["one"]
    assert sh(lab, "three", "hostname") == "three"
    assert machine.find_nspawn(f"mm-lab-{sandbox.name}-two") is None
    assert not (lab.directory / "nodes" / "two").exists()


@pytest.mark.parametrize("hard", [False, True])
def test_reboot_is_quick_and_honest(sandbox: Sandbox, hard: bool) -> None:
    """Files survive; addresses, rules and namespaces made at run time do not."""
    lab = sandbox.up(one=21)
    sh(lab, "one", "echo kept > /root/file && sync")
    sh(lab, "one", "nft add table inet gone && ip netns add gone && ip rule add fwmark 7 table 7")
    sh(lab, "one", "sysctl -qw net.ipv4.ip_forward=1")
    boot = sh(lab, "one", "cat /proc/1/stat | cut -d' ' -f22")
    started_at = time.monotonic()
    lab.reboot(["one"], hard=hard)
    assert time.monotonic() - started_at < REBOOT_SECONDS
    assert sh(lab, "one", "cat /root/file") == "kept"
    assert sh(lab, "one", "cat /proc/1/stat | cut -d' ' -f22") != boot
    assert sh(lab, "one", "nft list tables; ip netns list; ip rule show fwmark 7") == ""
    assert sh(lab, "one", "sysctl -n net.ipv4.ip_forward") == "0"


def test_rebuild_gives_fresh_machines_at_the_same_addresses(sandbox: Sandbox) -> None:
    """Nothing of the old machine is left but its place in the network."""
    lab = sandbox.up(one=21, two=22)
    old = sh(lab, "one", "touch /root/file; cat /etc/machine-id")
    neighbour = leaders(lab)["two"]
    lab.rebuild(["one"])
    assert sh(lab, "one", "ls /root/file 2>/dev/null || cat /etc/machine-id") != old
    assert len(sh(lab, "one", "cat /etc/machine-id")) == 32
    assert (
        sh(lab, "two", f"ping -c 1 -W 2 {lab.plan.node('one').address_v4} >/dev/null; echo $?")
        == "0"
    )
    assert leaders(lab)["two"] == neighbour


def test_ssh_connections_end_with_their_lab(sandbox: Sandbox) -> None:
    """A master left in the background would hang for minutes, or answer for the successor."""
    lab = sandbox.up(one=21)
    control = sandbox.directory / "master"
    command = lab.ssh_command("one", "true")
    options = ["-oControlMaster=yes", "-oControlPersist=600", f"-oControlPath={control}"]
    subprocess.run([command[0], *options, *command[1:]], check=True)
    check = ["ssh", "-O", "check", f"-oControlPath={control}", "nobody@nowhere"]
    assert subprocess.run(check, capture_output=True).returncode == 0
    sandbox.down()
    assert subprocess.run(check, capture_output=True).returncode != 0
    assert not control.exists()


def test_state_tells_ansible_literal_addresses(pair: Lab) -> None:
    """testinfra does not evaluate templates, so none may be in the generated inventory."""
    text = (pair.directory / "ansible.json").read_text()
    assert "{{" not in text
    hosts = yaml.safe_load(text)["_meta"]["hostvars"]
    assert hosts["one"]["ansible_host"] == pair.plan.node("one").address_v4
    assert state.load_plan(pair.plan.name) == pair.plan
