"""The programs together, as processes in namespaces: the shortest proof that they are a mesh.

What needs systemd, reboots or Ansible is proven in tests/lab; the claims are the same code.
"""

from __future__ import annotations

from tests.support.apps import ask, new_marker
from tests.support.capture import Recorder
from tests.support.claims import Exchange, assert_claims, claims
from tests.support.mesh import Workload
from tests.wire.mesh.conftest import PORT, Stage


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
