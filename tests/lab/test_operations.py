"""What an operator relies on: memory, sandboxes, how fast a change is in force, bad resources."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from metalmesh.constants import PORT_CONTROL_PLANE_METRICS
from tests.lab.cast import APP_PORT, NAMESPACE, OTHER_PORT, Cast, workload
from tests.lab.policies import authorization, from_workload, to_port
from tests.support.apps import ask
from tests.support.machines import Machine
from tests.support.mesh import CONTROL_PLANE, NODE_AGENT, ZTUNNEL, Mesh, Resource
from tests.support.waits import WAITS, wait_until

POLICY_BOUND_SECONDS = 1.0


def unit_pids(machine: Machine, unit: str) -> list[int]:
    """Processes of a unit, by their ids on this host."""
    group = machine.unit(unit, "ControlGroup")["ControlGroup"]
    inside = machine.sh(f"cat /sys/fs/cgroup{group}/cgroup.procs").split()
    wanted = set(inside)
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:  # the process ended meanwhile
            continue
        ids = re.search(r"^NSpid:\t(\d+)\t(\d+)$", text, re.MULTILINE)
        if ids and ids[2] in wanted and _is_of(int(ids[1]), machine):
            found.append(int(ids[1]))
    assert len(found) == len(wanted), f"{unit}: {inside} inside, found {found}"
    return found


def _is_of(pid: int, machine: Machine) -> bool:
    """Whether a process lives in the machine's process namespace."""
    return (
        Path(f"/proc/{pid}/ns/pid").readlink() == Path(f"/proc/{machine.leader}/ns/pid").readlink()
    )


def pss_megabytes(pid: int) -> float:
    """Proportional set size: shared pages are counted by their share."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert match, rollup
    return int(match[1]) / 1024


@pytest.mark.parametrize(
    ("unit", "bound"), [(ZTUNNEL, 90.0), (NODE_AGENT, 45.0), (CONTROL_PLANE, 80.0)]
)
def test_memory_stays_in_its_bounds(mesh: Mesh, record_property, unit: str, bound: float) -> None:
    """PSS of an idle node's services (issue: Bounds)."""
    machine = mesh.control_plane if unit == CONTROL_PLANE else mesh.nodes[0]
    pids = unit_pids(machine, unit)
    if unit == ZTUNNEL:
        assert len(pids) == 3, "main and two workers"
    used = sum(map(pss_megabytes, pids))
    record_property("pss_megabytes", used)
    print(f"{unit}: {used:.1f} MB PSS in {len(pids)} process(es), bound {bound:.0f} MB")
    assert used <= bound


@pytest.mark.parametrize(
    ("unit", "bound"), [(ZTUNNEL, 3.0), (NODE_AGENT, 3.0), (CONTROL_PLANE, 2.0)]
)
def test_units_are_sandboxed(mesh: Mesh, unit: str, bound: float) -> None:
    """systemd's own judgement of the exposure (DESIGN 2)."""
    machine = mesh.control_plane if unit == CONTROL_PLANE else mesh.nodes[0]
    text = machine.sh(f"systemd-analyze security --no-pager {unit}.service | tail -n 2")
    match = re.search(r"exposure level for \S+: ([0-9.]+)", text)
    assert match, text
    print(f"{unit}: exposure {match[1]}, bound {bound}")
    assert float(match[1]) <= bound


def test_private_keys_never_touch_a_file(mesh: Mesh, cast: Cast) -> None:
    """No key of a workload below any directory a service of ours can write (DESIGN 2)."""
    for node in mesh.nodes:
        found = node.sh(
            "grep -rlE 'BEGIN ([A-Z]+ )?PRIVATE KEY' /etc/metalmesh /var/lib/metalmesh "
            "/run /tmp /var/tmp 2>/dev/null || true"
        )
        assert found.split() == []


def test_policy_is_in_force_within_a_second_on_every_node(mesh: Mesh, cast: Cast) -> None:
    """From the write into the store to the refusal at both nodes' workloads, and back."""
    everybody = {"from": [{"source": {"namespaces": [NAMESPACE]}}]}
    deny = authorization("DENY", everybody, everywhere=True)
    paths = [(cast.client, cast.server), (cast.other, cast.client)]

    def answers() -> set[bool]:
        return {ask(a.netns, b.address, APP_PORT, b"x") == b"x" for a, b in paths}

    assert answers() == {True}
    for name, action, expected in (
        ("denied", lambda: mesh.apply(deny), {False}),
        ("allowed", lambda: mesh.delete(deny), {True}),
    ):
        started_at = time.monotonic()
        try:
            action()
            wait_until(lambda expected=expected: answers() == expected, WAITS["policy"], what=name)
        except BaseException:
            mesh.delete(deny)
            raise
        seconds = time.monotonic() - started_at
        print(f"policy change in force ({name}) on both nodes after {seconds * 1000:.0f} ms")
        assert seconds < POLICY_BOUND_SECONDS


BAD_SPECS = {
    "malformed YAML": "apiVersion: [unclosed\n",
    "unknown field": json.dumps(authorization("DENY", {"fromm": []})),
    "wrong type": json.dumps(authorization("DENY", {"to": [{"operation": {"ports": "all"}}]})),
    "unknown action": json.dumps(authorization("MAYBE", {})),
}


@pytest.mark.parametrize("text", BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_invalid_resource_leaves_its_last_good_version_in_force(
    mesh: Mesh, cast: Cast, text: str
) -> None:
    """A bad object takes down neither itself nor others, and the log says file and field."""
    client, other = cast.client, cast.peer
    address = cast.server.address
    good = authorization("DENY", from_workload(client))
    with mesh.applied(good):
        wait_until(
            lambda: ask(client.netns, address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="the good version in force",
        )
        log = mesh.control_plane.journal(CONTROL_PLANE)
        mesh.write(mesh.store_path(good), text)
        line = log.wait("gate.yaml")
        print(line)
        assert ask(client.netns, address, APP_PORT, b"x") == b""
        assert ask(other.netns, address, APP_PORT, b"x") == b"x"
        mesh.apply(authorization("DENY", to_port(OTHER_PORT)))
        wait_until(
            lambda: ask(client.netns, address, APP_PORT, b"x") == b"x",
            WAITS["policy"],
            what="the next good version in force",
        )


def test_two_workloads_with_one_address_do_not_share_it(mesh: Mesh, cast: Cast) -> None:
    """The second one is refused with an error that names both; the first keeps working."""
    thief: Resource = workload(mesh, "node2", 1, "thief").entry
    log = mesh.control_plane.journal(CONTROL_PLANE)
    with mesh.applied(thief):
        line = log.wait(cast.server.address, "thief")
        assert "server" in line
        answer = ask(cast.client.netns, cast.server.address, APP_PORT, b"still the server")
        assert answer == b"still the server"


def test_unknown_kind_is_reported_and_ignored(mesh: Mesh, cast: Cast) -> None:
    """A kind that nobody knows is an error of that object only."""
    strange: Resource = {
        "apiVersion": "example.com/v1",
        "kind": "Strange",
        "metadata": {"name": "thing", "namespace": NAMESPACE},
        "spec": {},
    }
    log = mesh.control_plane.journal(CONTROL_PLANE)
    with mesh.applied(strange):
        log.wait("Strange", "thing")
        assert ask(cast.client.netns, cast.server.address, APP_PORT, b"x") == b"x"


def test_control_plane_counts_its_resources(mesh: Mesh, cast: Cast) -> None:
    """Metrics are served on 15014 and hold what the operator looks for."""
    text = mesh.control_plane.get(PORT_CONTROL_PLANE_METRICS, "/metrics")
    assert re.search(r"^# TYPE \w+ (counter|gauge|histogram)$", text, re.MULTILINE)
    assert re.search(r"^metalmesh_\w+", text, re.MULTILINE)


def test_unreadable_store_leaves_everything_in_force(mesh: Mesh, cast: Cast) -> None:
    """The control plane says what it cannot read, keeps serving, and recovers by itself."""
    client, address = cast.client, cast.server.address
    store = mesh.control_plane.path(mesh.settings["store_dir"])
    hidden = store.with_name("store-hidden-by-a-test")
    log = mesh.control_plane.journal(CONTROL_PLANE)
    with mesh.applied(authorization("DENY", from_workload(client))):
        wait_until(
            lambda: ask(client.netns, address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="the policy in force",
        )
        store.rename(hidden)
        try:
            print(log.wait("cannot be read", mesh.settings["store_dir"]))
            assert ask(client.netns, address, APP_PORT, b"x") == b""
            assert ask(cast.peer.netns, address, APP_PORT, b"x") == b"x"
        finally:
            hidden.rename(store)
    wait_until(
        lambda: ask(client.netns, address, APP_PORT, b"x") == b"x",
        WAITS["policy"],
        what="changes noticed again",
    )


def test_full_disk_is_named(mesh: Mesh) -> None:
    """What cannot be written is an error with the file and the reason, not half a file."""
    machine = mesh.control_plane
    place = "/run/metalmesh-proof-full"
    machine.sh(f"mkdir {place} && mount -t tmpfs -o size=4k tmpfs {place}")
    try:
        machine.sh(f"head -c 4096 /dev/zero > {place}/ballast")
        program = machine.unit(CONTROL_PLANE, "ExecStart")["ExecStart"].split("argv[]=")[1]
        command = f"{program.split()[0]} token create --node node1 --tokens-dir {place}/tokens"
        done = machine.host.run(command)
        assert done.rc == 1
        assert place in done.stderr
        assert "No space left on device" in done.stderr
        assert machine.sh(f"ls {place}").split() in (["ballast"], ["ballast", "tokens"])
    finally:
        machine.sh(f"umount {place} && rmdir {place}")
