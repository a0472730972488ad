"""A converged lab and a cast of workloads of the tests' own in it.

Nothing here builds the lab: ``make lab`` does. Workloads live in the namespace ``proof`` and are
removed at the end; what a test changes in the store it takes back itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from lab.driver import Lab
from lab.driver.errors import LabError
from tests.lab.cast import APP_PORT, OTHER_PORT, Cast, playing
from tests.support.apps import ask
from tests.support.artifacts import Evidence
from tests.support.capture import Link
from tests.support.machines import Machine, Machines
from tests.support.mesh import CONTROL_PLANE, NODE_AGENT, ZTUNNEL, Mesh
from tests.support.waits import WAITS, wait_until


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the lab; reboots come last, whatever their name."""
    for item in items:
        if "tests/lab/" in str(item.path):
            item.add_marker(pytest.mark.lab)
    items.sort(key=lambda item: item.path.name == "test_reboot.py")


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    name = os.environ.get("LAB_NAME", "default")
    try:
        found = Machines(Lab.open(name))
    except LabError as error:
        pytest.fail(f"no lab to test: {error}; `make lab` builds one", pytrace=False)
    yield found
    found.close()


@pytest.fixture(scope="session")
def mesh(machines: Machines) -> Mesh:
    found = Mesh(machines)
    for node in found.nodes:
        if not node.path("/etc/metalmesh/ztunnel.yaml").exists():
            pytest.fail(f"{node.name} has no ztunnel: run `make site` first", pytrace=False)
        found.wait_ready(node)
    return found


@pytest.fixture(scope="session")
def cast(mesh: Mesh) -> Iterator[Cast]:
    with playing(mesh) as found:
        yield found


@pytest.fixture
def node_link(mesh: Mesh) -> Link:
    """The link of node2: what passes between workloads of two nodes crosses it."""
    return mesh.machines.link("node2")


@pytest.fixture(autouse=True)
def open_to_all(request: pytest.FixtureRequest) -> None:
    """Every test begins with no policy in force: what the one before took back has arrived."""
    if "cast" not in request.fixturenames:
        return
    cast: Cast = request.getfixturevalue("cast")
    (outside, *_) = request.getfixturevalue("mesh").external
    callers = (cast.client.netns, cast.peer.netns, outside.netns)

    def served() -> bool:
        return all(
            ask(caller, cast.server.address, port, b"open?") == b"open?"
            for caller in callers
            for port in (APP_PORT, OTHER_PORT)
        )

    wait_until(served, WAITS["service"], what="everybody served before the test")


@pytest.fixture(autouse=True)
def witnesses(request: pytest.FixtureRequest, evidence: Evidence) -> None:
    """Journals, rules and sockets of every machine, should the test fail."""
    if "mesh" not in request.fixturenames:
        return
    mesh: Mesh = request.getfixturevalue("mesh")
    since = int(time.time())
    for machine in (*mesh.nodes, mesh.control_plane):
        for name, command in _QUESTIONS.items():
            evidence.witnesses[f"{machine.name}-{name}.txt"] = _question(
                machine, command.format(since=since)
            )


_UNITS = " ".join(f"-u {unit}" for unit in (ZTUNNEL, NODE_AGENT, CONTROL_PLANE))
_QUESTIONS = {
    "journal": f"journalctl --no-pager {_UNITS} --since=@{{since}}",
    "rules": 'nft list ruleset; for n in $(ls /run/netns 2>/dev/null); do echo "== $n";'
    ' nsenter --net=/run/netns/$n sh -c "nft list ruleset; ip rule; ip addr"; done',
    "sockets": 'for n in $(ls /run/netns 2>/dev/null); do echo "== $n";'
    " nsenter --net=/run/netns/$n ss -tanp; done; echo == node; ss -tanp",
    "config": "systemctl --no-pager list-units 'metalmesh-*'; tail -n +1 /etc/metalmesh/*.yaml",
}


def _question(machine: Machine, command: str):
    def witness() -> str:
        done = machine.host.run(command)
        return f"{done.stdout}{done.stderr}"

    return witness
