"""Applications of the lab's own demo come and go under load, and no request is lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.machines import Machine
from tests.support.mesh import Mesh
from tests.support.netns import Netns
from tests.support.waits import Wait, wait_until

SERVICE = ("10.96.0.10", 80)
UNIT = "echo-v2.service"
RETURN = Wait(20.0, "a Python server starts, and its probe runs every 2 s")
LEAVE = Wait(20.0, "three failed probes, 2 s apart")
PORT = 8080


class Requests:
    """One request after the other, each on a connection of its own."""

    def __init__(self, client: Netns) -> None:
        self._client = client
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.served = 0

    def run(self) -> None:
        """Until told to stop."""
        while not self._stop.is_set():
            try:
                with self._client.connect(*SERVICE) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n")
                    answer = connection.recv(4096)
            except OSError as error:
                self.failures.append(f"{time.strftime('%X')} {error}")
                continue
            if answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                self.served += 1
            else:
                self.failures.append(f"{time.strftime('%X')} answered {answer[:60]!r}")

    @contextmanager
    def going(self) -> Iterator[None]:
        """Run beside the block."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def unhealthy(node: Machine) -> dict[str, str]:
    """What the node agent keeps out of its services."""
    found: dict[str, str] = json.loads(node.get(15016, "/debug/state"))["unhealthy"]
    return found


def healthy_endpoints(node: Machine) -> int:
    """Endpoints of the demo's service, as a ztunnel knows them."""
    dump = json.loads(node.sh("curl -s http://127.0.0.1:15000/config_dump"))
    (service,) = (item for item in dump["services"] if item["name"] == "echo")
    return sum(item["status"] == "Healthy" for item in service["endpoints"].values())


@pytest.fixture
def demo(mesh: Mesh) -> Iterator[tuple[Netns, Machine, Machine]]:
    """The demo's client, its node, and the node of the server that stops."""
    node1, node2 = mesh.machines["node1"], mesh.machines["node2"]
    node2.sh(f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")  # not held by StartLimit
    wait_until(lambda: healthy_endpoints(node1) == 2, RETURN, what="both servers are well")
    yield node1.inner_netns("demo-sleep", ""), node1, node2
    node2.sh(f"systemctl start {UNIT}")
    wait_until(lambda: healthy_endpoints(node1) == 2, RETURN, what="both servers are well again")


def test_stopping_application_loses_no_request(demo: tuple[Netns, Machine, Machine]) -> None:
    """It leaves the endpoints everywhere before systemd tells it to stop, and comes back after."""
    client, node1, node2 = demo
    requests = Requests(client)
    with requests.going():
        wait_until(lambda: requests.served > 50, RETURN)
        for _ in range(2):
            node2.sh(f"systemctl stop {UNIT}")
            assert healthy_endpoints(node1) == 1
            before = requests.served
            wait_until(lambda before=before: requests.served > before + 50, RETURN)
            node2.sh(f"systemctl start {UNIT}")
            wait_until(lambda: healthy_endpoints(node1) == 2, RETURN, what="back")
        node2.sh(f"systemctl restart {UNIT}")
        before = requests.served
        wait_until(lambda: requests.served > before + 50, RETURN)
    assert requests.failures == []


def test_stuck_application_leaves_when_its_probe_fails(
    demo: tuple[Netns, Machine, Machine],
) -> None:
    """The negative twin: nobody announces it, so only the probe notices, seconds later."""
    _, node1, node2 = demo
    node2.sh(f"systemctl kill -s STOP {UNIT}")
    try:
        wait_until(lambda: healthy_endpoints(node1) == 1, LEAVE, what="the probe notices")
        (reason,) = unhealthy(node2).values()
        assert "no answer within 1 s" in reason
    finally:
        node2.sh(f"systemctl kill -s CONT {UNIT}")


def test_probes_need_no_identity(demo: tuple[Netns, Machine, Machine]) -> None:
    """The prober's rules are in force: without them redirection would end the probe."""
    _, _, node2 = demo
    metrics = node2.get(15016, "/metrics")
    assert 'result="succeeded"' in metrics
