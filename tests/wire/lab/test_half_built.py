"""A lab can be taken down in whatever state its making was interrupted."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable

import pytest

from lab.driver import Lab, host, machine, names, network, state
from tests.wire.lab.conftest import Sandbox

pytestmark = pytest.mark.root


def only_a_number(sandbox: Sandbox) -> None:
    state.save_plan(sandbox.name, state.read_inventory(sandbox.inventory(one=21)))


def only_a_fabric(sandbox: Sandbox) -> None:
    only_a_number(sandbox)
    network.wire_fabric(state.require_plan(sandbox.name))


def wired_but_not_started(sandbox: Sandbox) -> None:
    only_a_fabric(sandbox)
    plan = state.require_plan(sandbox.name)
    network.wire_node(plan, plan.node("one"))


def stopped_with_its_disk_mounted(sandbox: Sandbox) -> None:
    sandbox.up().kill(["one"])


def namespace_never_finished(sandbox: Sandbox) -> None:
    only_a_fabric(sandbox)
    (network.NETNS_DIR / names.object_name(sandbox.name, "one")).touch()


def running_with_its_state_lost(sandbox: Sandbox) -> None:
    lab = sandbox.up(one=21, two=22)
    for file in lab.directory.iterdir():
        if file.is_file():
            file.unlink()


def running_with_its_directory_moved_away(sandbox: Sandbox) -> None:
    lab = sandbox.up()
    for mounted in host.mounts_below(lab.directory):
        host.unmount(mounted)
    shutil.rmtree(lab.directory)


def nspawn_killed_and_machine_orphaned(sandbox: Sandbox) -> None:
    """The machine's processes live on although nothing supervises them."""
    lab = sandbox.up()
    name = lab.plan.node("one").object_name
    nspawn, leader = machine.find_nspawn(name), machine.find_leader(name)
    assert nspawn is not None
    assert leader is not None
    os.kill(nspawn, signal.SIGKILL)
    assert host.wait_gone(nspawn, timeout_seconds=5)
    assert host.command_line(leader)


def without_its_fabric(sandbox: Sandbox) -> None:
    network.remove_fabric(sandbox.up().plan)


STATES: list[Callable[[Sandbox], None]] = [
    only_a_number,
    only_a_fabric,
    wired_but_not_started,
    stopped_with_its_disk_mounted,
    namespace_never_finished,
    running_with_its_state_lost,
    running_with_its_directory_moved_away,
    nspawn_killed_and_machine_orphaned,
    without_its_fabric,
]


@pytest.mark.parametrize("make", STATES)
def test_half_built_lab_goes_without_a_trace(
    sandbox: Sandbox, make: Callable[[Sandbox], None]
) -> None:
    """`down` finds what there is by name, not by a record that may be wrong or gone."""
    make(sandbox)
    assert sandbox.traces() != {}
    sandbox.down()
    assert sandbox.traces() == {}


@pytest.mark.parametrize(
    "make",
    [only_a_fabric, wired_but_not_started, nspawn_killed_and_machine_orphaned, without_its_fabric],
)
def test_half_built_lab_is_completed(sandbox: Sandbox, make: Callable[[Sandbox], None]) -> None:
    """`up` resumes from wherever the last one ended."""
    make(sandbox)
    lab = sandbox.up()
    assert lab.is_up("one")
    assert [node.name for node in Lab.open(sandbox.name).plan.nodes] == ["one"]


def test_down_of_no_lab_is_no_error(sandbox: Sandbox) -> None:
    """CI takes labs down before it starts."""
    sandbox.down()
    assert sandbox.traces() == {}
