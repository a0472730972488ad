"""The control plane, which is the CA, is away while certificates live for 60 seconds.

Probes go on all the time: an open connection, a request over a tunnel that is open already, and
one that needs a new tunnel and so a valid certificate at both ends. In the middle the client's
node reboots: its keys were in memory only.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.report import Report
from tests.lab.cast import APP_PORT, Cast
from tests.support.apps import LongConnection, ask, new_marker
from tests.support.capture import capture
from tests.support.machines import Machine
from tests.support.mesh import CONTROL_PLANE, ZTUNNEL, Mesh, Workload
from tests.support.waits import WAITS, wait_until

TTL_SECONDS = 60
PROBE_SECONDS = 2.0
"""Pause between two rounds of probes."""


def run(mesh: Mesh, cast: Cast, minutes: int, report: Report) -> None:
    """What works and what does not, before and after the reboot, and how soon it is back."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_short_lived(mesh, cast))
        local = stack.enter_context(LongConnection(cast.other.netns, cast.server.address, APP_PORT))
        remote = LongConnection(cast.client.netns, cast.server.address, APP_PORT)
        probes = {
            "open connection": lambda: remote.echo(b"x") == b"x",
            "request over an open tunnel": lambda: _asks(cast.client, cast),
            "request over a new tunnel": lambda: _asks_anew(mesh, cast),
        }
        _down(mesh, stack)
        began_at = time.monotonic()
        _watch(probes, minutes * 30.0, began_at, report, "before the reboot")
        working = report.rows[-1]["open connection"]
        report.expect(working == "to the end", f"open connections go on: {working}")
        _reboot(mesh, cast, report)
        probes = {
            "open connection": lambda: local.echo(b"x") == b"x",
            "request over an open tunnel": lambda: _asks(cast.client, cast),
            "request over a new tunnel": lambda: _asks_anew(mesh, cast),
        }
        _watch(probes, minutes * 30.0, time.monotonic(), report, "after it; open: on node2")
        row = report.rows[-1]
        report.expect(row["open connection"] == "to the end", "node2 is not disturbed")
        report.expect(row["request over a new tunnel"] == "never", "no keys, no connection")
        back_at = time.monotonic()
        mesh.control_plane.sh(f"systemctl start {CONTROL_PLANE}")
        wait_until(lambda: _asks(cast.client, cast), WAITS["service"], what="served again")
        report.add({"phase": "control plane back", "served after s": time.monotonic() - back_at})


def _watch(
    probes: dict[str, Callable[[], bool]],
    seconds: float,
    began_at: float,
    report: Report,
    phase: str,
) -> None:
    """Probe until the time is over; note the last moment at which each one worked."""
    last = dict.fromkeys(probes, -1.0)
    last_round = dict.fromkeys(probes, 0)
    end_at = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end_at:
        rounds += 1
        next_at = time.monotonic() + PROBE_SECONDS
        for name, probe in probes.items():
            with contextlib.suppress(OSError):
                if probe():
                    last[name], last_round[name] = time.monotonic() - began_at, rounds
        wait_until(lambda at=next_at: time.monotonic() >= at, WAITS["traffic"])
    row: dict[str, object] = {"phase": phase, "seconds": time.monotonic() - began_at}
    for name, moment in last.items():
        ended = "to the end" if last_round[name] == rounds else f"up to {moment:.0f} s"
        row[name] = "never" if moment < 0 else ended
    report.add(row)


def _asks(who: Workload, cast: Cast) -> bool:
    return ask(who.netns, cast.server.address, APP_PORT, b"x") == b"x"


def _asks_anew(mesh: Mesh, cast: Cast) -> bool:
    mesh.drop_tunnels(cast.peer)
    return _asks(cast.peer, cast)


def _reboot(mesh: Mesh, cast: Cast, report: Report) -> None:
    """The node comes back without keys: it carries nothing, and above all nothing in clear."""
    node, marker = cast.client.node, new_marker()
    with tempfile.TemporaryDirectory() as directory:
        link = mesh.machines.link("node2")
        path = Path(directory)
        with capture(link, f"host {cast.server.address}", directory=path) as recording:
            node.disconnect()
            mesh.machines.lab.reboot([node.name])
            wait_until(lambda: _netns_is_there(cast), WAITS["boot"], what="back after the boot")
            answer = ask(cast.client.netns, cast.server.address, APP_PORT, marker)
        leaked = recording.plaintext_contains(marker)
    report.expect(answer == b"", "nothing is carried without keys")
    report.expect(not leaked, "nothing crosses the wire in clear")


def _netns_is_there(cast: Cast) -> bool:
    try:
        return cast.client.netns.path.exists()
    except RuntimeError:
        return False


@contextlib.contextmanager
def _short_lived(mesh: Mesh, cast: Cast) -> Iterator[None]:
    """Certificates of 60 s during the block; a restart, unlike a reload, asks for new ones."""
    files = [(node, "ztunnel", "secret_ttl_seconds", ZTUNNEL) for node in mesh.nodes]
    files.append((mesh.control_plane, "controlplane", "svid_ttl_seconds", CONTROL_PLANE))
    before = [
        machine.path(f"/etc/metalmesh/{name}.yaml").read_text() for machine, name, *_ in files
    ]

    def settle(machine: Machine, unit: str) -> None:
        machine.restart(unit)
        for node in mesh.nodes:
            mesh.wait_ready(node)

    try:
        for machine, name, key, _ in files:
            path = f"/etc/metalmesh/{name}.yaml"
            machine.sh(f"sed -i 's/^{key}: .*/{key}: {TTL_SECONDS}/' {path}")
        for machine, _, _, unit in reversed(files):
            settle(machine, unit)
        wait_until(lambda: _asks_anew(mesh, cast), WAITS["service"], what="short certificates")
        yield
    finally:
        for (machine, name, *_), text in zip(files, before, strict=True):
            machine.path(f"/etc/metalmesh/{name}.yaml").write_text(text)
        for machine, _, _, unit in reversed(files):
            machine.sh(f"systemctl restart {unit}")


def _down(mesh: Mesh, stack: contextlib.ExitStack) -> None:
    mesh.control_plane.sh(f"systemctl stop {CONTROL_PLANE}")
    stack.callback(mesh.control_plane.sh, f"systemctl start {CONTROL_PLANE}")
