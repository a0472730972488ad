"""Probes and announced ends, with the real agent, the real control plane and real connections."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
import yaml

from metalmesh.constants import PROBE_SNAT_IPV4
from metalmesh.render.redirection import RedirectionConfig, render_redirection
from tests.support.mesh_node import MeshNode, mesh_node
from tests.support.node_plane import ADDRESS as PLANE
from tests.support.node_plane import Plane
from tests.support.waits import WAITS, Wait, wait_until

pytestmark = pytest.mark.root

A4, B4 = "10.244.9.11", "10.244.9.12"
PORT = 8080
CHANGE = Wait(15.0, "three failures a second apart, then a report and a push")
FAST = {"periodSeconds": 1, "failureThreshold": 2}


class App:
    """Answers GET with a status that can be changed; remembers who asked."""

    def __init__(self, node: MeshNode, name: str, address: str) -> None:
        self.status = 200
        self.callers: list[str] = []
        self._listener = node.workload(name).listen(PORT, address=address)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self.callers.append(peer[0])
                    connection.settimeout(5)
                    if connection.recv(4096):
                        line = f"HTTP/1.1 {self.status} X\r\ncontent-length: 0\r\n\r\n"
                        connection.sendall(line.encode())

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def joined() -> Iterator[tuple[MeshNode, Plane]]:
    """A node that has joined; workloads a and b are placed, neither is up."""
    with mesh_node(xds_address=f"{PLANE}:15012") as node, contextlib.ExitStack() as stack:
        plane = Plane(node)
        stack.callback(plane.stop)
        plane.place("a", A4)
        plane.place("b", B4)
        plane.start()
        (node.directory / "join-token").write_text(plane.join_token() + "\n")
        yield node, plane


def declare(node: MeshNode, name: str, address: str, **probe: object) -> None:
    """A captured workload, with a probe if one is given; nobody serves it in this test."""
    notes = {"ambient.metalmesh.io/probe": yaml.safe_dump(probe)} if probe else {}
    node.declare(name, address, annotations=notes)
    node.up(name)


def served_health(node: MeshNode, plane: Plane) -> dict[str, bool]:
    """What the control plane tells of each workload: its condition Healthy."""
    return {
        item["object"].rpartition("/")[2]: not any(
            entry["type"] == "Healthy" and entry["status"] == "False"
            for entry in item["conditions"]
        )
        for item in plane.status()["objects"]
        if item["object"].startswith("WorkloadEntry")
    }


def wait_health(node: MeshNode, plane: Plane, name: str, *, healthy: bool) -> None:
    wait_until(
        lambda: served_health(node, plane).get(name) is healthy,
        CHANGE,
        what=f"{name} {'healthy' if healthy else 'unhealthy'}",
    )


def uid(node: MeshNode, name: str) -> str:
    return f"Kubernetes/networking.istio.io/WorkloadEntry/{node.unique}/{name}"


def test_http_probe_decides_and_needs_no_identity(joined: tuple[MeshNode, Plane]) -> None:
    """Plaintext from the node reaches the redirected workload, from the probe address."""
    node, plane = joined
    declare(node, "a", A4, httpGet={"port": PORT, "path": "/healthz"}, **FAST)
    declare(node, "b", B4)
    node.start_agent()
    wait_health(node, plane, "a", healthy=False)  # nobody listens
    assert list(node.debug()["unhealthy"]) == [uid(node, "a")], "without a probe all is well"
    app = App(node, "a", A4)
    try:
        wait_health(node, plane, "a", healthy=True)
        assert set(app.callers) == {PROBE_SNAT_IPV4}
        app.status = 503
        wait_health(node, plane, "a", healthy=False)
        assert "status 503" in node.debug()["unhealthy"][uid(node, "a")]
        app.status = 302
        wait_health(node, plane, "a", healthy=True)
    finally:
        app.close()
    wait_health(node, plane, "a", healthy=False)
    assert node.metric("metalmesh_node_unhealthy_workloads") == 1


def test_probe_without_the_nodes_rules_would_be_captured(joined: tuple[MeshNode, Plane]) -> None:
    """The negative twin: a root process that is not told apart ends at the proxy's port."""
    node, plane = joined
    declare(node, "a", A4, tcpSocket={"port": PORT}, **FAST)
    app = App(node, "a", A4)
    try:
        node.start_agent()
        wait_health(node, plane, "a", healthy=True)
        # the same rules without the exemption of probes, beside ours: drift is repaired at once
        text = render_redirection(RedirectionConfig()).replace(PROBE_SNAT_IPV4, "192.0.2.9")
        assert PROBE_SNAT_IPV4 not in text
        connected: list[bool] = []

        def without_rules() -> bool:
            node.workload("a").do(lambda: _load(text))
            try:
                node.netns.connect(A4, PORT, timeout_seconds=1).close()
            except OSError:
                connected.append(False)
            return bool(connected)

        wait_until(without_rules, CHANGE, what="a refused connection")
    finally:
        app.close()


def _load(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)


def test_restarted_agent_takes_nobody_out(joined: tuple[MeshNode, Plane]) -> None:
    """Who was well is taken to be well until the probe says otherwise."""
    node, _ = joined
    declare(node, "a", A4, tcpSocket={"port": PORT}, initialDelaySeconds=60)
    saved = node.directory / "run" / "health.json"
    saved.parent.mkdir(exist_ok=True)
    saved.write_text(f'["{node.unique}-a"]')
    node.start_agent()
    wait_until(lambda: node.debug()["controlPlane"]["connected"], WAITS["service"])
    assert node.debug()["unhealthy"] == {}


def test_announced_end_is_known_everywhere_before_the_command_returns(
    joined: tuple[MeshNode, Plane],
) -> None:
    node, plane = joined
    declare(node, "a", A4)
    node.start_agent()
    wait_until(
        lambda: [item["known"] for item in node.debug()["workloads"]] == [True], WAITS["service"]
    )
    name = f"{node.unique}-a"
    done = node.command("workload", "--config", str(node.config_path), "drain", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert served_health(node, plane)["a"] is False
    # it survives a restart of both
    node.stop_agents()
    plane.stop()
    plane.start()
    assert served_health(node, plane)["a"] is False
    node.start_agent()
    assert uid(node, "a") in node.debug()["unhealthy"]
    done = node.command("workload", "--config", str(node.config_path), "ready", name)
    assert done.returncode == 0
    wait_health(node, plane, "a", healthy=True)


def test_application_stops_also_without_an_agent(joined: tuple[MeshNode, Plane]) -> None:
    node, _ = joined
    declare(node, "a", A4)
    name = f"{node.unique}-a"
    done = node.command("workload", "--config", str(node.config_path), "drain", name)
    assert done.returncode == 0
    assert "the node agent cannot be asked" in done.stderr
    unknown = node.command("workload", "--config", str(node.config_path), "drain", "nobody")
    assert unknown.returncode == 1
    assert "nobody.yaml does not exist" in unknown.stderr
