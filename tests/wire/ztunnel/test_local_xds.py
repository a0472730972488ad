"""A ztunnel that knows the mesh from a file, without a control plane's xDS."""

from __future__ import annotations

import pytest
import yaml

from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    StringMatch,
)
from metalmesh.xds.local import LocalMesh
from tests.support.apps import ask, echo_app
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Stage

pytestmark = pytest.mark.root
PORT = 8080
FIRST = Match(principals=(StringMatch(MatchKind.EXACT, "cluster.local/ns/shop/sa/sa1"),))
DENY_FIRST = Authorization(
    name="no-first",
    namespace="shop",
    scope=PolicyScope.NAMESPACE,
    action=Action.DENY,
    rules=(((FIRST,),),),
)


def test_a_file_is_enough(stage: Stage) -> None:
    """HBONE and policy as with xDS; certificates still come from a CA."""
    one, two = stage.add_guest(), stage.add_guest()
    local = LocalMesh((one.workload, two.workload), (), (DENY_FIRST,))
    path = stage.directory / "mesh.yaml"
    path.write_text(yaml.safe_dump(local.to_dict()))
    stage.settings |= {
        "xds_address": "", "ca_address": "127.0.0.1:15012", "local_xds_path": str(path),
    }  # fmt: skip
    stage.plane.start()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    assert stage.dump()["staticConfig"] == local.to_dict()
    assert [w["name"] for w in stage.dump()["workloads"]] == ["w1", "w2"]
    with echo_app(one.netns, PORT), echo_app(two.netns, PORT):
        wait_until(
            lambda: ask(two.netns, one.netns.address, PORT, b"x") == b"x",
            WAITS["workload"],
            what="the second reaches the first",
        )
        assert 'dst.identity="spiffe://cluster.local/ns/shop/sa/sa1"' in stage.wait_log(
            "connection complete", "outbound", two.netns.address
        )
        # negative twin: the policy of the file refuses the first one
        assert ask(one.netns, two.netns.address, PORT, b"x") == b""
        stage.wait_log("explicitly denied by: shop/no-first")


def test_a_file_with_an_unknown_key_is_refused_before_anything_runs(stage: Stage) -> None:
    path = stage.directory / "mesh.yaml"
    path.write_text("workloads: [{uid: a, namespace: b, workloadIps: [], services: {}, nam: c}]")
    stage.settings |= {"xds_address": "", "local_xds_path": str(path)}
    stage.start()
    assert stage.process is not None
    assert stage.process.wait(WAITS["service"].seconds) == 1
    assert f"{path}: workloads[0].nam: unknown key" in stage.log()
    stage.process = None
