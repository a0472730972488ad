"""Differential: what ``why`` foretells is what a data worker decides, message by message."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from metalmesh.cli.resources import load_files
from metalmesh.controlplane.config import ControlPlaneConfig
from metalmesh.controlplane.world import make_world
from metalmesh.errors import PolicyDeniedError
from metalmesh.model.workload import TunnelProtocol
from metalmesh.model.workload import Workload as MeshWorkload
from metalmesh.policy.answer import Outcome
from metalmesh.policy.answer import Path as Way
from metalmesh.policy.l4 import Connection
from metalmesh.policy.why import explain
from metalmesh.policy.world import World, find_source, find_target
from metalmesh.zds.messages import AddWorkload
from metalmesh.ztunnel.view import policies_for, view_local
from metalmesh.ztunnel.worker.logs import LogWriter
from metalmesh.ztunnel.worker.loop import Loop
from metalmesh.ztunnel.worker.workloads import Workload
from tests.unit.cli import test_why as cases

POLICIES = (
    cases.STRICT, cases.MESH_STRICT, cases.PORT_STRICT, cases.DENY, cases.ALLOW % 8080,
    cases.ALLOW % 9090, cases.NO_HBONE, cases.NAMED, cases.OTHER_INNER,
)  # fmt: skip
SOURCES = ("demo/sleep", "demo/echo-v1", "plain/old", "10.77.0.31")
TARGETS = ("demo/echo-v2:8080", "demo/echo-v1:9090", "demo/sleep:80", "echo.demo:80")


def worker_admits(world: World, source: MeshWorkload, way: Way, port: int) -> bool:
    """The verdict of the worker that serves the endpoint, on what main would tell it."""
    uid = next(
        item.uid
        for item in world.state.workloads.values()
        if f"{item.namespace}/{item.name}" == way.endpoint
    )
    served = world.state.workloads[uid]
    info = AddWorkload(uid, served.name, served.namespace, served.service_account)
    worker = Workload(view_local(served).added(info), -1, LogWriter(Loop()))
    worker.set_policies(policies_for(world.state, uid, served, inner_enforcement=True))
    tunneled = source.protocol is TunnelProtocol.HBONE
    address = ip_address(way.target.rpartition(":")[0])
    subject = Connection(source.addresses[0], address, port, source.identity if tunneled else None)
    try:
        worker.judge(subject, tunneled=tunneled)
    except PolicyDeniedError:
        return False
    return True


@pytest.mark.parametrize("first", range(len(POLICIES)))
@pytest.mark.parametrize("second", range(len(POLICIES)))
def test_the_worker_decides_as_foretold(tmp_path: Path, first: int, second: int) -> None:
    """Every pair of policies, source and target; refusals by packet rules come before a worker."""
    chosen = "".join(POLICIES[index] for index in sorted({first, second}))
    chosen = chosen.replace("name: allow", "name: allow-9090", 1)
    (tmp_path / "mesh.yaml").write_text(cases.MESH + cases.ENTRIES + chosen)
    options = ControlPlaneConfig(server_names=()).compute_options
    loaded = load_files([str(tmp_path)], options)
    assert loaded.admission.errors == ()
    world = make_world(loaded.admission.objects, loaded.computation, options)
    judged = 0
    for source_text in SOURCES:
        source = find_source(world.state, source_text)
        for text in TARGETS:
            answer = explain(world, source, find_target(world.state, source, text))
            for way in answer.paths:
                on_wire = any(
                    step.effect.value == "stop" and step.hop.startswith(("ingress", "egress"))
                    for step in way.steps
                )
                if not on_wire:
                    judged += 1
                    admitted = worker_admits(world, source, way, int(way.target.split(":")[1]))
                    assert admitted is (way.outcome is not Outcome.DENIED), (source_text, way)
    assert judged
