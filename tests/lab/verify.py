"""The proof for a newcomer: ``python -m tests.lab.verify`` on a converged lab.

An unmodified curl in one workload asks a server in a workload of another node. The recording of
the link between the nodes is decrypted with the lab's key log and has to show what the mesh
promises; then a NetworkPolicy shows what it can and cannot see. Exits 1 when a claim fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from lab.driver import Lab
from lab.driver.errors import LabError
from metalmesh.constants import ANNOTATION_NODE, PORT_HBONE, WORKLOADS_DIR
from tests.support.apps import new_marker
from tests.support.capture import Link, capture
from tests.support.claims import Claim, Exchange, claims
from tests.support.machines import Machine, Machines
from tests.support.mesh import Mesh, Resource, Workload
from tests.support.waits import WAITS, WaitError, wait_until

WIRE_LOG = "maybe a NetworkPolicy is blocking HBONE port 15008"
CURL_SECONDS = 5
BLOCKED_SECONDS = 12
"""Longer than a proxy's connect timeout of 10 s, so that curl hears the end of it."""


class Report:
    """Prints claims as they are settled, and remembers whether one failed."""

    def __init__(self) -> None:
        self.failed = 0

    def title(self, text: str) -> None:
        """Say what comes next."""
        print(f"\n{text}", flush=True)

    def add(self, *found: Claim) -> None:
        """Print claims and what was seen."""
        for claim in found:
            self.failed += not claim.holds
            mark = "ok  " if claim.holds else "FAIL"
            print(f"  {mark}  {claim.text}\n          {claim.seen}", flush=True)


def workloads_on(node: Machine, mesh: Mesh) -> Iterator[Workload]:
    """Workloads as the node's own specs describe them."""
    directory = node.path(WORKLOADS_DIR)
    for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else []:
        entry = yaml.safe_load(path.read_text())
        metadata, spec = entry["metadata"], entry["spec"]
        assert metadata["annotations"][ANNOTATION_NODE] == node.name
        yield Workload(
            node=node,
            namespace=metadata["namespace"],
            name=metadata["name"],
            account=spec.get("serviceAccount", "default"),
            address=spec["address"],
            trust_domain=mesh.settings["trust_domain"],
            labels=metadata.get("labels", {}) | spec.get("labels", {}),
        )


def find_workload(mesh: Mesh, wanted: str) -> Workload:
    """The workload called ``namespace/name``."""
    known = [workload for node in mesh.nodes for workload in workloads_on(node, mesh)]
    for workload in known:
        if f"{workload.namespace}/{workload.name}" == wanted:
            return workload
    names = ", ".join(f"{workload.namespace}/{workload.name}" for workload in known) or "none"
    raise LabError(f"no workload {wanted!r} on any node, there is: {names}; run `make site`")


def curl(where: str, node: Machine, url: str, marker: bytes, seconds: int = CURL_SECONDS) -> str:
    """An unmodified curl; its HTTP status, or what it complained about."""
    inside = f"ip netns exec {where} " if where else ""
    done = node.host.run(
        f"{inside}curl -sS -o /dev/null -w '%{{http_code}}' --max-time {seconds}"
        f" -H 'x-marker: {marker.decode()}' '{url}'"
    )
    return str(done.stdout if done.rc == 0 else done.stderr).strip()


class Proof:
    """The steps, in the order in which they are printed."""

    def __init__(
        self, mesh: Mesh, client: Workload, server: Workload, port: int, service: str
    ) -> None:
        self.mesh, self.client, self.server, self.port = mesh, client, server, port
        self.service = service
        self.report = Report()
        self.url = f"http://{server.address}:{port}/"

    def run(self) -> int:
        """Everything; the number of failed claims."""
        started_at = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mm-verify-") as directory:
            self._wire(Path(directory))
            self._recorder_sees_plaintext(Path(directory))
        self._network_policy()
        seconds = time.monotonic() - started_at
        verdict = f"{self.report.failed} FAILED" if self.report.failed else "all hold"
        self.report.title(f"{verdict} ({seconds:.0f} s)")
        return self.report.failed

    def _link(self) -> Link:
        return self.mesh.machines.link(self.server.node.name)

    def _wire(self, directory: Path) -> None:
        client, server = self.client, self.server
        self.report.title(
            f"curl {self.url} in {client.namespace}/{client.name} on {client.node.name},"
            f" recorded on the link of {server.node.name}"
        )
        self.mesh.drop_tunnels(client)
        marker = new_marker()
        with capture(self._link(), f"host {server.address}", directory=directory) as recording:
            status = curl(client.netns_name, client.node, self.url, marker)
        self.report.add(Claim("curl was answered", status == "200", f"HTTP status {status}"))
        self._by_name()
        exchange = Exchange(
            client_address=client.address,
            client_identity=client.identity,
            server_address=server.address,
            server_identity=server.identity,
            port=self.port,
            marker=marker,
        )
        self.report.add(*claims(recording, self.mesh.keylog(), exchange))

    def _by_name(self) -> None:
        """The same by the service's name: node-local DNS, its virtual address, an endpoint."""
        if self.service:
            url = f"http://{self.service}/"
            status = curl(self.client.netns_name, self.client.node, url, new_marker())
            self.report.add(Claim(f"curl {url} is answered, too", status == "200", status))

    def _recorder_sees_plaintext(self, directory: Path) -> None:
        """The negative twin: without a mesh the same recording shows the marker."""
        (outside, *_) = self.mesh.external
        self.report.title(f"the same curl on {outside.name}, outside of the mesh")
        marker = new_marker()
        with capture(self._link(), f"host {self.server.address}", directory=directory) as recording:
            curl("", outside, self.url, marker)
        seen = recording.plaintext_contains(marker)
        ports = recording.ports_between({outside.address}, {self.server.address})
        self.report.add(
            Claim(
                "this time the recording holds the marker in clear, so it is not blind",
                seen and ports == {f"tcp/{self.port}"},
                f"{', '.join(sorted(ports))}, marker {'found' if seen else 'not found'}",
            )
        )

    def _network_policy(self) -> None:
        self.report.title("a NetworkPolicy on the server")
        try:
            self.mesh.apply(self._policy(self.port))
            self._blocked_without_15008()
            self.mesh.apply(self._policy(self.port, PORT_HBONE))
            self.report.add(self._served("once it admits 15008, too, curl is served again"))
        except WaitError as error:
            self.report.add(Claim("the policy is in force soon", False, str(error)))
        finally:
            self.mesh.delete(self._policy())
        self.report.add(self._served("without the policy curl is served"))

    def _blocked_without_15008(self) -> None:
        (outside, *_) = self.mesh.external
        wait_until(
            lambda: not self._opens(outside, PORT_HBONE), WAITS["policy"], what="policy in force"
        )
        self.mesh.drop_tunnels(self.client)
        log = self.mesh.access_log(self.client.node)
        status = curl(
            self.client.netns_name, self.client.node, self.url, new_marker(), BLOCKED_SECONDS
        )
        text = f"one that admits only port {self.port} blocks the mesh"
        self.report.add(Claim(text, status != "200", status))
        text = "the log of the client's node says why"
        try:
            line = log.wait(WIRE_LOG)
        except WaitError:
            self.report.add(Claim(text, False, "no such line"))
        else:
            self.report.add(Claim(text, True, line[line.index("error=") :]))

    def _opens(self, machine: Machine, port: int) -> bool:
        try:
            machine.netns.connect(self.server.address, port, timeout_seconds=0.3).close()
        except OSError:
            return False
        return True

    def _served(self, text: str) -> Claim:
        """Claim that curl is served, as soon as the changed policy is in force."""
        status = ""

        def served() -> bool:
            nonlocal status
            status = curl(self.client.netns_name, self.client.node, self.url, new_marker(), 1)
            return status == "200"

        try:
            wait_until(served, WAITS["policy"])
        except WaitError:
            return Claim(text, False, status)
        return Claim(text, True, f"HTTP status {status}")

    def _policy(self, *ports: int) -> Resource:
        rules = [{"ports": [{"protocol": "TCP", "port": port} for port in ports]}]
        app = self.server.labels["app"]
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "metalmesh-verify", "namespace": self.server.namespace},
            "spec": {
                "podSelector": {"matchLabels": {"app": app}},
                "policyTypes": ["Ingress"],
                "ingress": rules,
            },
        }


def main() -> int:
    """Parse the command line, print the proof."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.verify", description=__doc__)
    parser.add_argument("--lab", default=os.environ.get("LAB_NAME", "default"))
    parser.add_argument("--client", default="demo/sleep", help="NAMESPACE/NAME, has curl")
    parser.add_argument("--server", default="demo/echo-v2", help="NAMESPACE/NAME on another node")
    parser.add_argument("--port", type=int, default=8080, help="where the server listens")
    parser.add_argument("--service", default="", help="NAME.NAMESPACE that has the server, if any")
    arguments = parser.parse_args()
    try:
        machines = Machines(Lab.open(arguments.lab))
        try:
            mesh = Mesh(machines)
            client = find_workload(mesh, arguments.client)
            server = find_workload(mesh, arguments.server)
            if client.node.name == server.node.name:
                raise LabError(f"{arguments.client} and {arguments.server} share a node")
            return 1 if Proof(mesh, client, server, arguments.port, arguments.service).run() else 0
        finally:
            machines.close()
    except (LabError, AssertionError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
