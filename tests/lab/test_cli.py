"""The command from the controller, by the inventory's ssh, on the converged mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.cast import APP_PORT, NAMESPACE, Cast
from tests.lab.policies import authorization, from_workload
from tests.support.apps import ask
from tests.support.mesh import Mesh
from tests.support.waits import WAITS, wait_until

ROOT = Path(__file__).parents[2]
INVENTORY = ("-i", "inventory/lab")


def metalmesh(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a verb as an operator does, in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "metalmesh.cli.main", *words, *INVENTORY],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def why(*words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and answer of ``why``."""
    done = metalmesh("why", *words, "-o", "json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_ztunnel_config_shows_a_node_of_the_inventory(mesh: Mesh, cast: Cast) -> None:
    """The same table as on the node; another node has other connections, but the same mesh."""
    done = metalmesh("ztunnel-config", "workload", "-n", NAMESPACE, "--host", "node1")
    rows = {line.split()[1]: line.split() for line in done.stdout.splitlines()[1:]}
    assert set(rows) == {player.name for player in cast.all}, done.stderr
    server = rows[cast.server.name]
    assert server[3:] == ["node2", "None", "HBONE"]
    assert cast.server.address in server[2]
    assert rows[cast.plain.name][-1] == "TCP"
    nobody = metalmesh("ztunnel-config", "workload", "--host", "nosuchnode")
    assert nobody.returncode == 1
    assert nobody.stdout == ""


def test_why_is_proved_by_a_probe(mesh: Mesh, cast: Cast) -> None:
    """An allowed pair really connects, and both ends' logs show it."""
    status, answer = why("proof/client", f"proof/server:{APP_PORT}", "--probe")
    assert (status, answer["outcome"], answer["probe"]["agrees"]) == (0, "allowed", True)
    assert answer["probe"]["error"] is None
    assert cast.client.identity in answer["probe"]["destinationLog"]
    assert 'direction="outbound"' in answer["probe"]["sourceLog"]


def test_why_is_proved_by_a_probe_that_is_refused(mesh: Mesh, cast: Cast) -> None:
    """Negative twin: a denied pair is foretold with its rule, and the server's log names it."""
    deny = authorization("DENY", from_workload(cast.client))
    name = f"{NAMESPACE}/{deny['metadata']['name']}"
    with mesh.applied(deny):
        wait_until(
            lambda: ask(cast.client.netns, cast.server.address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="the policy in force",
        )
        status, answer = why("proof/client", f"proof/server:{APP_PORT}", "--probe")
        decided = answer["decidedBy"]
        assert (status, answer["outcome"]) == (3, "denied")
        assert (decided["object"], decided["rule"]) == (f"AuthorizationPolicy {name}", 0)
        assert answer["probe"]["agrees"] is True
        assert f"explicitly denied by: {name}" in answer["probe"]["destinationLog"]
        # somebody else is neither foretold to be refused, nor is
        status, answer = why("proof/peer", f"proof/server:{APP_PORT}", "--probe")
        assert (status, answer["outcome"], answer["probe"]["agrees"]) == (0, "allowed", True)


def test_why_knows_plaintext_when_it_sees_it(mesh: Mesh, cast: Cast) -> None:
    """Who is not in the mesh connects without a ztunnel, and no log has an identity."""
    status, answer = why("proof/plain", f"proof/server:{APP_PORT}", "--probe")
    assert (status, answer["outcome"], answer["probe"]["agrees"]) == (0, "plaintext", True)
    assert "src.identity" not in (answer["probe"]["destinationLog"] or "")


def test_a_policy_is_applied_seen_and_deleted_from_the_controller(mesh: Mesh, cast: Cast) -> None:
    """What ``apply`` says is in force on the wire, and is gone after ``delete``."""
    deny = authorization("DENY", from_workload(cast.client))
    name = "authorizationpolicy.security.istio.io/gate"
    text = json.dumps(dict(deny))

    def answer() -> bytes:
        return ask(cast.client.netns, cast.server.address, APP_PORT, b"x")

    try:
        done = metalmesh("apply", "-f", "-", stdin=text)
        assert (done.stdout, done.stderr) == (f"{name} created\n", "")
        wait_until(lambda: answer() == b"", WAITS["policy"], what="the policy in force")
        described = metalmesh("describe", "ap", "gate", "-n", NAMESPACE).stdout
        assert "Status: Accepted\n" in described
        assert "attached to ztunnel" in described
        # negative twin: what is wrong changes nothing
        refused = metalmesh("apply", "-f", "-", stdin=text.replace("DENY", "NEVER"))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "spec.action" in refused.stderr
        assert answer() == b""
        done = metalmesh("delete", "-f", "-", stdin=text)
        assert done.stdout == 'authorizationpolicy.security.istio.io "gate" deleted\n', done.stderr
        wait_until(lambda: answer() == b"x", WAITS["policy"], what="the policy gone")
    finally:
        mesh.delete(deny)


def test_every_node_is_in_step_with_the_control_plane(mesh: Mesh, cast: Cast) -> None:
    """A ztunnel and a node agent per node, of the version that is installed."""
    rows = [line.split() for line in metalmesh("proxy-status").stdout.splitlines()[1:]]
    names = {row[0] for row in rows}
    for node in mesh.nodes:
        assert {f"ztunnel-{node.name}.istio-system", node.name} <= names
    assert {row[-1] for row in rows} == {"SYNCED"}
    versions = json.loads(metalmesh("version", "-o", "json").stdout)
    found = {item["component"]: item for item in versions["dataPlaneVersion"]}
    assert found["ztunnel"]["count"] == len(mesh.nodes)
    assert {item["version"] for item in found.values()} == {versions["meshVersion"]}
