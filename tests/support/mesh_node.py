"""A node of the mesh in a network namespace of its own: real netns, real nft, the real command.

Namespaces of workloads are the machine's (``/run/netns``), so every name carries a random part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from pyroute2 import IPRoute, netns

from metalmesh.model.network_policy import CompiledNetworkPolicy
from metalmesh.node.state import NodeState, PolicyState
from metalmesh.node.workload_spec import LocalWorkload, parse_local_workload
from tests.support.netns import Netns, netns_pair
from tests.support.waits import WAITS, wait_until

CLUSTER_ID: Final = "Kubernetes"
DNS_ADDRESS: Final = "169.254.20.10"
SERVICE_CIDR: Final = "10.96.0.0/16"
COMMAND_SECONDS: Final = 30.0
_ROOT: Final = Path(__file__).parents[2]


@dataclasses.dataclass
class NodeWithAgent:
    """The namespace of a node, its files, and the agents that run there."""

    netns: Netns
    outside: Netns
    directory: Path
    unique: str
    agents: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)

    @property
    def config_path(self) -> Path:
        """The node's configuration."""
        return self.directory / "node.yaml"

    def start_agent(self) -> subprocess.Popen[bytes]:
        """Run the agent until the node goes; wait for it to be ready."""
        log = (self.directory / "agent.log").open("ab")
        line = [sys.executable, "-m", "metalmesh.cli.main", "node", "run"]
        line += ["--config", str(self.config_path)]
        agent = self.netns.popen(*line, stderr=log, env=_environment())
        log.close()
        self.agents.append(agent)
        wait_until(lambda: self._is_ready(agent), WAITS["service"], what="node agent ready")
        return agent

    def _is_ready(self, agent: subprocess.Popen[bytes]) -> bool:
        if agent.poll() is not None:
            raise RuntimeError(f"the node agent ended: {self.log()}")
        return self.get("/healthz/ready")[0] == 200

    def get(self, path: str) -> tuple[int, str]:
        """One HTTP request to the agent; status 0 when nobody listens."""
        request = f"GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n"
        try:
            with self.netns.connect("127.0.0.1", 15016) as sock:
                sock.sendall(request.encode())
                reply = b"".join(iter(lambda: sock.recv(65536), b""))
        except OSError:
            return 0, ""
        head, _, body = reply.decode().partition("\r\n\r\n")
        return int(head.split(" ")[1]), body

    def debug(self) -> Any:
        """The agent's own view."""
        return json.loads(self.get("/debug/state")[1])

    def metric(self, name: str) -> float:
        """Sum of a metric's samples."""
        lines = self.get("/metrics")[1].splitlines()
        values = [line.rsplit(" ", 1) for line in lines if line.startswith(name)]
        return sum(float(value) for _, value in values)

    def log(self) -> str:
        """What the agents have logged."""
        path = self.directory / "agent.log"
        return path.read_text() if path.exists() else ""

    def stop_agents(self) -> None:
        """Stop every agent that still runs."""
        for agent in self.agents:
            if agent.poll() is None:
                agent.terminate()
            agent.wait(10)


@dataclasses.dataclass
class MeshNode(NodeWithAgent):
    """A node with its workloads, and a client outside of the mesh behind a link."""

    # --- workloads -------------------------------------------------------------------------
    def declare(
        self,
        name: str,
        *addresses: str,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        file: str = "",
        **spec: Any,
    ) -> LocalWorkload:
        """Write the spec of a workload; its netns is ``UNIQUE-NAME``."""
        first, *more = addresses
        notes = dict(annotations or {})
        if more:
            notes["ambient.metalmesh.io/addresses"] = ",".join(more)
        entry = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {
                "name": name,
                "namespace": self.unique,
                "labels": labels or {},
                "annotations": notes,
            },
            "spec": {"address": first, "serviceAccount": name, **spec},
        }
        path = self.directory / "workloads" / (file or f"{self.unique}-{name}.yaml")
        text = yaml.safe_dump(entry)
        path.write_text(text)
        return parse_local_workload(text, str(path), CLUSTER_ID)

    def withdraw(self, name: str) -> None:
        """Remove a spec."""
        (self.directory / "workloads" / f"{self.unique}-{name}.yaml").unlink()

    def workload(self, name: str, address: str = "") -> Netns:
        """The netns of a workload."""
        return Netns(Path("/run/netns") / f"{self.unique}-{name}", address)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``metalmesh node ARGUMENTS`` on the node."""
        line = [sys.executable, "-m", "metalmesh.cli.main", "node", *arguments]
        return self.netns.do(
            lambda: subprocess.run(
                line,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
                env=_environment(),
            )
        )

    def netns_command(self, verb: str, name: str = "") -> str:
        """``metalmesh node netns VERB``; its output, or RuntimeError with its complaint."""
        names = [f"{self.unique}-{name}"] if name else []
        done = self.command("netns", "--config", str(self.config_path), verb, *names)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def up(self, name: str) -> str:
        """Bring a workload's netns up."""
        return self.netns_command("up", name)

    def down(self, name: str) -> str:
        """Take a workload's netns down."""
        return self.netns_command("down", name)

    # --- state -----------------------------------------------------------------------------
    @property
    def state(self) -> NodeState:
        """The node's files."""
        return NodeState(self.directory / "run", self.directory / "state")

    def know(
        self, *workloads: LocalWorkload, policies: tuple[CompiledNetworkPolicy, ...] = ()
    ) -> None:
        """Leave policies behind as if the control plane had sent them before a reboot."""
        uids = frozenset(item.uid for item in workloads)
        self.state.save_policies(PolicyState(policies, uids))

    def configure(self, **changes: Any) -> None:
        """Write the configuration."""
        values = {
            "component": "node",
            "node_name": "node1",
            "workloads_dir": str(self.directory / "workloads"),
            "state_dir": str(self.directory / "state"),
            "run_dir": str(self.directory / "run"),
            "zds_socket": str(self.directory / "zds.sock"),
            "token_path": str(self.directory / "token"),
            "join_token_path": str(self.directory / "join-token"),
            "root_cert_path": str(self.directory / "root-cert.pem"),
            "ztunnel_group": "root",
            "token_group": "root",
            "service_cidr": SERVICE_CIDR,
            "dns_address": DNS_ADDRESS,
            "reconcile_interval_seconds": 0.5,
            "log_level": "debug",
            **changes,
        }
        self.config_path.write_text(yaml.safe_dump(values))

    # --- traffic ---------------------------------------------------------------------------
    def nft(self, *arguments: str, inside: str = "") -> str:
        """Run ``nft`` on the node, or inside a workload."""
        place = self.workload(inside) if inside else self.netns
        return place.run("nft", *arguments)


@contextlib.contextmanager
def mesh_node(**config: Any) -> Iterator[MeshNode]:
    """A node with a link to a client outside (198.18.0.1 and .2, fd18::1 and ::2)."""
    unique = f"mm-n{secrets.token_hex(3)}"
    with contextlib.ExitStack() as stack:
        inside, outside = stack.enter_context(netns_pair())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mm-node-")))
        (directory / "workloads").mkdir()
        (directory / "state").mkdir()
        node = MeshNode(inside, outside, directory, unique)
        node.configure(**config)
        _route(inside, outside)
        stack.callback(_remove_namespaces, unique)
        stack.callback(node.stop_agents)
        yield node


def _route(inside: Netns, outside: Netns) -> None:
    """Both families; the client reaches everything through the node."""
    for side, address in ((inside, "fd18::1"), (outside, "fd18::2")):
        # duplicate address detection would keep IPv6 silent for two seconds
        side.do(lambda: Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0"))
        with IPRoute(netns=str(side.path)) as link:
            index = link.link_lookup(ifname="eth0")[0]
            link.link("set", index=index, state="down")
            link.link("set", index=index, state="up")
            link.addr("add", index=index, address=address, prefixlen=64, flags=2)
    with IPRoute(netns=str(outside.path)) as link:
        index = link.link_lookup(ifname="eth0")[0]
        link.route("add", dst="default", gateway="198.18.0.1", oif=index)
        link.route("add", family=10, dst="default", gateway="fd18::1", oif=index)


def _remove_namespaces(unique: str) -> None:
    for name in netns.listnetns():
        if name.startswith(f"{unique}-"):
            netns.remove(name)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT / "src")}


# --- small servers -------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(
    make: Callable[[], socket.socket], answer: Callable[[socket.socket], bytes]
) -> Iterator[socket.socket]:
    """Answer every connection to a listener with what ``answer`` makes of it."""
    listener = make()

    def loop() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(5)
                with contextlib.suppress(OSError):
                    peer.sendall(answer(peer))

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def fetch(client: Netns, address: str, port: int, *, timeout_seconds: float = 2.0) -> str:
    """What a server says to a client; the name of the error when it does not get through."""
    try:
        with client.connect(address, port, timeout_seconds=timeout_seconds) as sock:
            sock.settimeout(timeout_seconds)
            return b"".join(iter(lambda: sock.recv(4096), b"")).decode()
    except OSError as error:
        return type(error).__name__
