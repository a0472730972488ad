"""Roots and issuing certificates are replaced while the mesh works (docs/decisions/0014)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.apps import ask, echo_app
from tests.support.bare import BareNode, bare_mesh, bare_workload, settle
from tests.support.mesh import Mesh, Workload
from tests.support.mixed_load import MixedLoad

pytestmark = pytest.mark.root
PORT = 8080
ROOT = "/etc/metalmesh/root-cert.pem"


@pytest.fixture(scope="module")
def meshed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Mesh, Workload, Workload]]:
    """A client and a server on two nodes; certificates live for a day."""
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(bare_mesh(tmp_path_factory.mktemp("mesh")))
        client, server = bare_workload(mesh, "n1", 10, "a"), bare_workload(mesh, "n2", 10, "b")
        for workload in (client, server):
            stack.callback(mesh.remove_workload, workload)
            mesh.add_workload(workload)
        stack.enter_context(echo_app(server.netns, PORT))
        settle(lambda: ask(client.netns, server.address, PORT, b"x") == b"x", "traffic")
        yield mesh, client, server


@pytest.fixture(autouse=True)
def witnesses(evidence, meshed: tuple[Mesh, Workload, Workload]) -> None:
    """Logs of every program, should a test fail."""
    nodes: Any = (meshed[0].control_plane, *meshed[0].nodes)
    for node in nodes:
        evidence.files += [node.log_path(component) for component in node.processes]


def _ca(mesh: Mesh, *arguments: str) -> dict[str, Any]:
    """Change the CA as the play does; what every node must have afterwards."""
    cp: Any = mesh.control_plane
    return json.loads(cp.command("ca", *arguments, "--dir", str(cp.path("/var/ca")), "-o", "json"))


def _distribute(mesh: Mesh, node: BareNode) -> None:
    bundle: bytes = mesh.control_plane.path("/var/ca/root-cert.pem").read_bytes()
    node.path(ROOT).write_bytes(bundle)


def _check(node: BareNode, state: dict[str, Any], seconds: float = 30) -> None:
    """Fails when the node has not followed."""
    roots = [f"--root={serial}" for serial in state["roots"]]
    where = ("--root-cert-path", str(node.path(ROOT)), "--timeout", str(seconds))
    node.command("ca", "check-node", "--issuing", state["issuing"], *roots, *where)


def _refused(node: BareNode, state: dict[str, Any]) -> str:
    with pytest.raises(RuntimeError) as caught:
        _check(node, state, 0)
    return str(caught.value)


def test_root_is_replaced_under_load_and_nothing_fails(
    meshed: tuple[Mesh, Workload, Workload],
) -> None:
    """Both roots everywhere, then the new one signs, then the old one goes."""
    mesh, client, server = meshed
    nodes: Any = mesh.nodes
    states = []
    with MixedLoad([client.netns], server.address, PORT, idle=3) as load:
        for stage in ("prepare", "switch", "finish"):
            state = _ca(mesh, "rotate-root", "--stage", stage)
            assert state["changed"]
            assert "do not go on" in _refused(nodes[1], state)
            for node in nodes:
                _distribute(mesh, node)
                _check(node, state)
            assert not _ca(mesh, "rotate-root", "--stage", stage)["changed"]
            states.append(state)
    outcome = load.outcome()
    assert (outcome.failures, outcome.transfers_lost, outcome.idle_lost) == ((), 0, 0)
    assert outcome.requests > 50
    prepared, switched, finished = states
    assert set(prepared["roots"]) == set(switched["roots"]) > set(finished["roots"])
    assert prepared["issuing"] != switched["issuing"] == finished["issuing"]
    mesh.drop_tunnels(client)
    assert ask(client.netns, server.address, PORT, b"x") == b"x"  # by the new root alone


def test_issuing_certificate_is_replaced_and_nodes_renew_at_once(
    meshed: tuple[Mesh, Workload, Workload],
) -> None:
    """Also after the control plane was restarted meanwhile: it announces what it signs with."""
    mesh, client, server = meshed
    nodes: Any = mesh.nodes
    cp: Any = mesh.control_plane
    with MixedLoad([client.netns], server.address, PORT, idle=3) as load:
        state = _ca(mesh, "renew")
        for node in nodes:
            _check(node, state)
        cp.stop("controlplane")
        state = _ca(mesh, "renew")
        cp.start("controlplane")
        for node in nodes:
            _check(node, state)
    outcome = load.outcome()
    assert (outcome.failures, outcome.transfers_lost, outcome.idle_lost) == ((), 0, 0)
