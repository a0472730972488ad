"""The programs together, as processes in namespaces: the shortest proof that they are a mesh.

What needs systemd, reboots or Ansible is proven in tests/lab; the claims are the same code.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import EchoApp, ask, echo_app, new_marker
from tests.support.bare import BareNode, bare_mesh, bare_workload, settle
from tests.support.capture import Recorder
from tests.support.claims import Exchange, assert_claims, claims
from tests.support.mesh import Mesh, Workload

pytestmark = pytest.mark.root
PORT = 8080


@dataclasses.dataclass(frozen=True)
class Stage:
    """A mesh, three workloads, and the server's application."""

    mesh: Mesh
    client: Workload
    plain: Workload
    server: Workload
    app: EchoApp
    nodes: list[BareNode]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory: Path = tmp_path_factory.mktemp("mesh")
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(bare_mesh(directory))
        client = bare_workload(mesh, "n1", 10, "client")
        plain = bare_workload(mesh, "n1", 11, "plain", ambient=False)
        server = bare_workload(mesh, "n2", 10, "server")
        namespace = {"apiVersion": "v1", "kind": "Namespace"}
        namespace["metadata"] = {"name": client.namespace}
        stack.enter_context(mesh.applied(namespace))
        for workload in (client, plain, server):
            stack.callback(mesh.remove_workload, workload)
            mesh.add_workload(workload)
        app = stack.enter_context(echo_app(server.netns, PORT))
        settle(lambda: ask(client.netns, server.address, PORT, b"x") == b"x", "traffic")
        settle(lambda: ask(plain.netns, server.address, PORT, b"x") == b"x", "plain traffic")
        nodes: list = [*mesh.nodes, mesh.control_plane]
        yield Stage(mesh, client, plain, server, app, nodes)


@pytest.fixture(autouse=True)
def witnesses(evidence, stage: Stage) -> None:
    """Logs of every program, should a test fail."""
    for node in stage.nodes:
        for component in node.processes:
            evidence.files.append(node.log_path(component))


def exchange(stage: Stage, client: Workload, record: Recorder):
    """One recorded exchange and what was said of it."""
    server = stage.server
    marker = new_marker()
    stage.mesh.drop_tunnels(client)
    with record(stage.mesh.machines.link("n2"), f"host {server.address}") as recording:
        assert ask(client.netns, server.address, PORT, marker) == marker
    told = Exchange(client.address, client.identity, server.address, server.identity, PORT, marker)
    return recording, told


def test_traffic_between_nodes_is_hbone(stage: Stage, record: Recorder) -> None:
    """Only 15008, TLS 1.3, both identities, CONNECT, nothing in clear, source kept."""
    del stage.app.callers[:]
    recording, told = exchange(stage, stage.client, record)
    assert_claims(recording, stage.mesh.keylog(), told)
    assert stage.app.callers == [stage.client.address]


def test_workload_outside_of_the_mesh_sends_plaintext(stage: Stage, record: Recorder) -> None:
    """Negative twin."""
    recording, told = exchange(stage, stage.plain, record)
    found = claims(recording, stage.mesh.keylog(), told)
    assert [claim.holds for claim in found] == [False, False, False]
    assert recording.ports_between({stage.plain.address}, {stage.server.address}) == {"tcp/8080"}
