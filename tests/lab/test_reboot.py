"""A node reboots: its applications are captured from their first SYN on.

Last in the run: what the tests ran in node1's namespaces is gone afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.lab.cast import APP_PORT, Cast, workload
from tests.support.apps import ask, new_marker
from tests.support.capture import Link, Recorder
from tests.support.mesh import Mesh, Workload
from tests.support.waits import WAITS, wait_until

# An impatient application: tries to reach its server from its first instruction on, until it is
# served; the pause leaves the two cores to those who boot.
PROGRAM = """\
import socket, time
while True:
    try:
        with socket.create_connection(("{address}", {port}), 0.5) as server:
            server.sendall(b"{marker}")
            if server.recv(100):
                break
    except OSError:
        time.sleep(0.02)
"""
UNIT = """\
[Unit]
Description=An application of the lab tests
Requires={netns_unit}
BindsTo={netns_unit}
After={netns_unit}
StartLimitIntervalSec=0

[Service]
NetworkNamespacePath=/run/netns/{netns}
ExecStart=/usr/bin/python3 /etc/metalmesh-proof/{name}.py
Restart=on-failure
RestartSec=100ms

[Install]
WantedBy=multi-user.target
"""


@contextlib.contextmanager
def installed_application(client: Workload, server: Workload, marker: bytes) -> Iterator[None]:
    """An ordinary unit in the workload's namespace, enabled at boot."""
    node = client.node
    name = f"metalmesh-proof-{client.name}"
    program = node.path("/etc/metalmesh-proof")
    program.mkdir(exist_ok=True)
    (program / f"{name}.py").write_text(
        PROGRAM.format(address=server.address, port=APP_PORT, marker=marker.decode())
    )
    unit = UNIT.format(netns_unit=client.unit, netns=client.netns_name, name=name)
    node.path(f"/etc/systemd/system/{name}.service").write_text(unit)
    node.sh(f"systemctl daemon-reload && systemctl enable -q {name}")
    try:
        yield
    finally:
        node.sh(
            f"systemctl disable -q --now {name};"
            f" rm -rf /etc/systemd/system/{name}.service /etc/metalmesh-proof;"
            " systemctl daemon-reload"
        )


@pytest.fixture
def early(mesh: Mesh, cast: Cast) -> Iterator[Workload]:
    """A workload of the mesh on the node that reboots."""
    found = workload(mesh, "node1", 10, "early")
    mesh.add_workload(found)
    yield found
    mesh.remove_workload(found)


@pytest.mark.parametrize("hard", [False, True], ids=["in order", "power cord"])
def test_application_is_captured_from_its_first_syn_on(
    mesh: Mesh, cast: Cast, early: Workload, node_link: Link, record: Recorder, hard: bool
) -> None:
    """The recording spans the reboot; the twin outside of the mesh shows that it is not blind."""
    node = early.node
    seen = cast.callers["server"]
    del seen[:]
    markers = {early.name: new_marker(), cast.plain.name: new_marker()}
    with (
        installed_application(early, cast.server, markers[early.name]),
        installed_application(cast.plain, cast.server, markers[cast.plain.name]),
        record(node_link, f"host {cast.server.address}") as recording,
    ):
        node.disconnect()
        started_at = time.monotonic()
        mesh.machines.lab.reboot([node.name], hard=hard)
        seconds = time.monotonic() - started_at
        for caller in (early, cast.plain):
            wait_until(
                lambda caller=caller: caller.address in seen,
                WAITS["boot"],
                what=f"the application of {caller.name} after the reboot",
            )
            print(f"{caller.name} served {time.monotonic() - started_at:.2f} s after its start")
    print(f"{node.name} rebooted in {seconds:.2f} s")
    ports = recording.ports_between({early.address}, {cast.server.address})
    assert ports == {"tcp/15008"}
    assert not recording.plaintext_contains(markers[early.name])
    assert recording.plaintext_contains(markers[cast.plain.name])
    mesh.wait_ready(node)
    assert ask(early.netns, cast.server.address, APP_PORT, b"x") == b"x"


def test_workloads_are_back_after_the_reboot(mesh: Mesh, cast: Cast) -> None:
    """Namespaces, redirection and identity came from the node's own files."""
    assert cast.client.node.host.run(f"systemctl is-active {cast.client.unit}").rc == 0
    for player in (cast.client, cast.peer):
        wait_until(
            lambda player=player: ask(player.netns, cast.server.address, APP_PORT, b"x") == b"x",
            WAITS["workload"],
            what=f"{player.name} after the reboot",
        )
