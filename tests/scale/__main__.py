"""``python -m tests.scale``: how control plane and ztunnel grow with the mesh.

For each size: a store of so many workloads, a fifth as many services and a tenth as many
policies; the real control plane reads it, the real ztunnel of one node follows it, and one
connection between two workloads of that node is made through a service.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.load import cpu_seconds, pss_megabytes
from tests.scale import world
from tests.scale.stage import FORCE, LOADED, ControlPlane, scale_stage
from tests.support.waits import wait_until
from tests.support.ztunnel_stage import NAMESPACE, Guest, Stage

Row = dict[str, Any]
COLUMNS = (
    ("workloads", "workloads"),
    ("plane_start_seconds", "control plane: start s"),
    ("plane_cpu_seconds", "CPU s"),
    ("plane_megabytes", "MB PSS"),
    ("ztunnel_synced_seconds", "ztunnel: synced s"),
    ("first_connection_seconds", "first connection s"),
    ("main_megabytes", "main MB PSS"),
    ("change_seconds", "policy in force s"),
    ("change_cpu_seconds", "CPU s of a change"),
)


@contextlib.contextmanager
def greeting(guest: Guest) -> Iterator[None]:
    """A server on port 8080 that greets and closes."""
    listener = guest.netns.listen(8080)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                connection.sendall(b"hello")
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(2)
        listener.close()
        thread.join()


def greeted(client: Guest, address: str) -> bool:
    """Whether a connection from the client to a service gets through."""
    try:
        with client.netns.connect(address, 80) as connection:
            return connection.recv(16) == b"hello"
    except OSError:
        return False


def deny_all(name: str) -> Row:
    """A policy that refuses everything to a workload."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "closed", "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"app": name}}, "action": "ALLOW", "rules": []},
    }


def measure(workloads: int) -> Row:
    """Everything about one size."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(tempfile.TemporaryDirectory(prefix="mm-scale-"))
        stage, plane = stack.enter_context(scale_stage(Path(path)))
        for name, text in world.files(workloads, workloads // 5, workloads // 10):
            (plane.store / name).write_text(text)
        return _measure(stage, plane, workloads)


def _measure(stage: Stage, plane: ControlPlane, workloads: int) -> Row:
    row: Row = {"workloads": workloads, "plane_start_seconds": plane.start()}
    assert plane.process is not None
    plane_pids = [plane.process.pid]
    client, server = stage.guests
    address = f"10.99.0.{server.number}"
    with greeting(server):
        began = time.monotonic()
        stage.start()
        stage.snapshot(client, server)
        wait_until(lambda: greeted(client, address), LOADED, what="the first connection")
        row["first_connection_seconds"] = time.monotonic() - began
        wait_until(lambda: stage.readiness()[0] == 200, LOADED, what="ztunnel ready")
        row["ztunnel_synced_seconds"] = time.monotonic() - began
        assert stage.process is not None
        known = len(stage.dump()["workloads"])
        assert known == workloads + 2, f"the ztunnel knows {known} workloads"
        row["plane_cpu_seconds"] = cpu_seconds(plane_pids)
        row["plane_megabytes"] = pss_megabytes(plane_pids)
        row["main_megabytes"] = pss_megabytes([stage.process.pid])
        before = cpu_seconds(plane_pids)
        began = time.monotonic()
        plane.put("closed.yaml", deny_all(server.workload.name))
        wait_until(lambda: not greeted(client, address), FORCE, what="the policy is in force")
        row["change_seconds"] = time.monotonic() - began
        row["change_cpu_seconds"] = cpu_seconds(plane_pids) - before
    return row


def show(rows: list[Row]) -> None:
    """The table in Markdown."""
    print("| " + " | ".join(title for _, title in COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(_text(row[key]) for key, _ in COLUMNS) + " |")


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def main() -> int:
    """Measure each size; print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    parser.add_argument("--workloads", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--json", default="", help="write the rows to this file")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: it makes network namespaces")
    rows = []
    for workloads in options.workloads:
        print(f"{workloads} workloads ...", file=sys.stderr)
        rows.append(measure(workloads))
    show(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
