"""One mesh of processes for all tests here; what a test adds it removes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import EchoApp, ask, echo_app
from tests.support.bare import BareNode, bare_mesh, bare_workload, settle
from tests.support.mesh import Mesh, Workload

PORT = 8080


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here makes namespaces."""
    for item in items:
        if "wire/mesh" in item.nodeid:
            item.add_marker(pytest.mark.root)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A mesh, three workloads, and the server's application."""

    mesh: Mesh
    client: Workload
    plain: Workload
    server: Workload
    app: EchoApp
    nodes: list[BareNode]


@pytest.fixture(scope="package")
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
