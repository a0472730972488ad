"""`uninstall.yml` leaves nothing behind: a machine looks like one that never was in the mesh.

Not part of tests/lab: it takes the mesh away. ``make lab-test`` runs it last, on its own lab. The
machine to compare with is the lab's external client, made from the same image and never touched.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.driver import Lab
from tests.support.machines import Machine, Machines

ROOT = Path(__file__).parents[2]
QUESTIONS = {
    "files": "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /tmp \\) -prune"
    " -o -print; find /run -print",
    "users": "cut -d: -f1 /etc/passwd",
    "groups": "cut -d: -f1 /etc/group",
    "units": "systemctl list-unit-files --no-legend --plain | cut -d' ' -f1",
    "loaded units": "systemctl list-units --all --no-legend --plain 'metalmesh*'",
    "nft": "nft list ruleset",
    "rules": "ip rule; ip -6 rule",
    "routes": "for f in -4 -6; do ip $f route show table all; done"
    " | grep -oE '^[a-z]* ?[^ ]*' | sort -u",
    "links": "ip -o link | grep -oE '^[0-9]+: [^@:]+' | cut -d' ' -f2",
    "netns": "ip netns",
    "sysctl": "sysctl -a 2>/dev/null | grep -E"
    " '^net[.]ipv[46][.](ip_forward|conf[.](all|default|eth0)[.])'",
    "processes": "ps -eo args= | grep -i '[m]etalmesh' || true",
    "hosts": "cat /etc/hosts /etc/resolv.conf",
}
MOST_LINES = 60
UNRELATED = re.compile(
    r"^/(var/log|var/cache|var/lib/(systemd|apt|dpkg)|run/(systemd|log|udev|user|sudo|ansible)"
    r"|root/\.ansible|root/\.cache|etc/(machine-id|hostname|ssh)|var/tmp|usr/lib/python3.*/__pycache__)"
    r"|^/run/netns$|^local "
)
"""What comes and goes with logins, logs and packages, whatever the mesh does; the directory that
iproute2 makes for anybody's namespaces; routes to a machine's own addresses."""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    name = os.environ.get("LAB_NAME", "")
    if name in ("", "default"):
        pytest.fail("this takes the mesh away: give a throwaway lab, LAB_NAME=test", pytrace=False)
    found = Machines(Lab.open(name))
    yield found
    found.close()


def answers(machine: Machine) -> dict[str, set[str]]:
    """Everything a machine has, line by line, without what is its own."""
    found = {}
    for topic, command in QUESTIONS.items():
        lines = machine.sh(command).splitlines()
        found[topic] = {line for line in map(str.rstrip, lines) if not UNRELATED.match(line)}
    return found


def test_uninstall_leaves_nothing(machines: Machines) -> None:
    """No unit, file, user, namespace, rule or route is left; running it twice changes nothing."""
    (pristine, *_) = machines.group("mesh_external")
    images = {node.name: node.image for node in machines.lab.plan.nodes}
    members = [
        machine
        for group in ("mesh_nodes", "mesh_control_plane")
        for machine in machines.group(group)
        if images[machine.name] == images[pristine.name]
    ]
    before = answers(members[0])
    untouched = answers(pristine)
    assert before["files"] - untouched["files"], "the mesh is not installed: run site.yml first"
    playbook = [sys.executable, "-m", "ansible", "playbook", "playbooks/uninstall.yml"]
    for run in (1, 2):
        done = subprocess.run(playbook, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        if run == 2:
            assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}, done.stdout
    left = [
        f"{machine.name}: {topic}: {line}"
        for machine in members
        for topic, lines in answers(machine).items()
        for line in sorted(lines - untouched[topic])
    ]
    assert not left, "\n".join(left[:MOST_LINES])
