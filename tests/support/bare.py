"""A mesh of processes on this machine: no systemd, no Ansible, no lab.

Three namespaces on one bridge: ``cp``, ``n1`` and ``n2``. The programs are the installed ones, with
configuration files of their own; a node's files live below a directory that stands for its root.
Offers what ``machines`` offers, so that the same mesh helpers and claims work on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pyroute2 import IPRoute, netns

from metalmesh.constants import PORT_XDS, WORKLOADS_DIR
from tests.support.capture import Link
from tests.support.mesh import Mesh, Workload
from tests.support.netns import Netns, create_netns, in_netns
from tests.support.waits import WAITS, Wait, wait_until

COMMAND = (sys.executable, "-m", "metalmesh.cli.main")
BRIDGE = "br0"
STOP = Wait(35.0, "a ztunnel drains for up to 25 s")
UNITS = {
    "metalmesh-controlplane": "controlplane",
    "metalmesh-node": "node",
    "metalmesh-ztunnel": "ztunnel",
}


@dataclasses.dataclass
class BareNode:
    """A namespace with the programs of one node."""

    name: str
    unique: str
    address: str
    root: Path
    pod_cidr: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    @property
    def netns_name(self) -> str:
        """Name of the namespace on this machine."""
        return f"mm-{self.unique}-{self.name}"

    @property
    def netns(self) -> Netns:
        """The node's own network namespace."""
        return Netns(Path("/run/netns") / self.netns_name, self.address)

    @staticmethod
    def inner_netns(name: str, address: str) -> Netns:
        """A workload's namespace."""
        return Netns(Path("/run/netns") / name, address)

    def path(self, absolute: str) -> Path:
        """A file of the node."""
        known = Path(absolute)
        return known if known.is_relative_to(self.root) else self.root / absolute.lstrip("/")

    def config(self, component: str) -> dict[str, Any]:
        """A program's configuration file."""
        return dict(yaml.safe_load(self.path(f"/etc/metalmesh/{component}.yaml").read_text()))

    def configure(self, component: str, **settings: object) -> None:
        """Write a program's configuration file."""
        path = self.path(f"/etc/metalmesh/{component}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"component": component, **settings}))

    def log_path(self, component: str) -> Path:
        """What a program wrote to stderr."""
        return self.root / f"{self.name}-{component}.log"

    def command(self, *arguments: str) -> str:
        """Run the metalmesh command in the node's namespace to its end."""
        return self.netns.run(*COMMAND, *arguments)

    def start(self, component: str) -> None:
        """Start a program."""
        config = str(self.path(f"/etc/metalmesh/{component}.yaml"))
        with self.log_path(component).open("ab") as log:
            self.processes[component] = self.netns.popen(
                *COMMAND, component, "run", "--config", config,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"METALMESH_LAB": "1"},
            )  # fmt: skip

    def stop(self, component: str, number: int = signal.SIGTERM) -> None:
        """Stop a program and wait for its end."""
        process = self.processes.pop(component)
        process.send_signal(number)
        try:
            process.wait(STOP.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill_all(self) -> None:
        """End what still runs."""
        for component in list(self.processes):
            self.stop(component, signal.SIGKILL)

    def start_workload(self, name: str) -> None:
        """Make a workload's namespace."""
        self.command("node", "netns", "--config", self._node_config, "up", name)

    def stop_workload(self, name: str) -> None:
        """Remove a workload's namespace."""
        self.command("node", "netns", "--config", self._node_config, "down", name)

    @property
    def _node_config(self) -> str:
        return str(self.path("/etc/metalmesh/node.yaml"))

    def get(self, port: int, path: str) -> str:
        """Fetch a page of a program's admin port from inside."""

        def fetch() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())

        return in_netns(self.netns.path, fetch)

    def journal(self, unit: str) -> BareJournal:
        """A program's log from now on."""
        path = self.log_path(UNITS[unit])
        return BareJournal(path, path.stat().st_size if path.exists() else 0)


@dataclasses.dataclass(frozen=True)
class BareJournal:
    """Lines of a log file after an offset."""

    path: Path
    offset: int

    def lines(self) -> list[str]:
        """What was logged since."""
        with self.path.open("rb") as log:
            log.seek(self.offset)
            return log.read().decode(errors="replace").splitlines()

    def wait(self, *words: str) -> str:
        """The first line since then that holds all the words, waiting for it to appear."""

        def found() -> str:
            return next((line for line in self.lines() if all(w in line for w in words)), "")

        return wait_until(found, WAITS["log_line"], what=f"{self.path} saying {words}")


class BareMachines:
    """The namespaces of one bare mesh."""

    def __init__(self, directory: Path) -> None:
        self.unique = f"w{secrets.token_hex(3)}"
        self.fabric = f"mm-{self.unique}-fab"
        self.cp = self._node("cp", 1, directory)
        self.nodes = [self._node(f"n{number}", number + 10, directory) for number in (1, 2)]
        self.ext = self._node("ext", 31, directory)
        for number, node in enumerate(self.nodes, 1):
            node.pod_cidr = f"198.19.{number}.0/24"
        self.all = [self.cp, *self.nodes, self.ext]

    def _node(self, name: str, octet: int, directory: Path) -> BareNode:
        root = directory / name
        root.mkdir(parents=True)
        return BareNode(name, self.unique, f"198.18.7.{octet}", root)

    def group(self, name: str) -> list[BareNode]:
        """The nodes of an inventory group."""
        groups = {"mesh_nodes": self.nodes, "mesh_control_plane": [self.cp]}
        return groups.get(name, [self.ext])

    def __getitem__(self, name: str) -> BareNode:
        return next(node for node in self.all if node.name == name)

    def link(self, name: str) -> Link:
        """The fabric's end of a node's link."""
        return Link(Path("/run/netns") / self.fabric, f"v-{name}")

    @contextlib.contextmanager
    def wired(self) -> Iterator[None]:
        """Namespaces, bridge and links; removed at the end, with every process."""
        made: list[str] = []
        try:
            for name in (self.fabric, *(node.netns_name for node in self.all)):
                create_netns(name)
                made.append(name)
            self._wire()
            yield
        finally:
            for node in self.all:
                node.kill_all()
            for name in made:
                netns.remove(name)

    def _wire(self) -> None:
        with IPRoute(netns=self.fabric) as fabric:
            fabric.link("add", ifname=BRIDGE, kind="bridge")
            bridge = fabric.link_lookup(ifname=BRIDGE)[0]
            fabric.link("set", index=bridge, state="up")
            for node in self.all:
                self._wire_node(fabric, bridge, node)

    def _wire_node(self, fabric: IPRoute, bridge: int, node: BareNode) -> None:
        name = f"v-{node.name}"
        with node.netns.path.open() as handle:
            peer = {"ifname": "eth0", "net_ns_fd": handle.fileno()}
            fabric.link("add", ifname=name, kind="veth", peer=peer)
        index = fabric.link_lookup(ifname=name)[0]
        fabric.link("set", index=index, master=bridge, state="up")
        with IPRoute(netns=node.netns_name) as inside:
            inside.link("set", index=inside.link_lookup(ifname="lo")[0], state="up")
            eth0 = inside.link_lookup(ifname="eth0")[0]
            inside.addr("add", index=eth0, address=node.address, prefixlen=24)
            inside.link("set", index=eth0, state="up")
            if node is self.ext:
                for other in self.nodes:
                    inside.route("add", dst=other.pod_cidr, gateway=other.address)


@contextlib.contextmanager
def bare_mesh(directory: Path) -> Iterator[Mesh]:
    """Control plane, two node agents and two ztunnels, ready."""
    machines = BareMachines(directory)
    with machines.wired():
        _start_control_plane(machines)
        mesh = Mesh(machines)  # type: ignore[arg-type]
        for node in machines.nodes:
            mesh.apply(_node_resource(node))
            _start_node(machines, node)
        for node in machines.nodes:
            mesh.wait_ready(node)  # type: ignore[arg-type]
        yield mesh


def _start_control_plane(machines: BareMachines) -> None:
    cp = machines.cp
    ca, store, tokens, state = (
        cp.path(f"/var/{name}") for name in ("ca", "store", "tokens", "state")
    )
    for path in (ca, store, tokens, state):
        path.mkdir(parents=True)
    cp.command("ca", "init", "--dir", str(ca), "--trust-domain", "cluster.local")
    cp.configure(
        "controlplane",
        store_dir=str(store), ca_dir=str(ca), tokens_dir=str(tokens),
        state_dir=str(state), server_names=[cp.address],
    )  # fmt: skip
    cp.start("controlplane")
    wait_until(lambda: _listens(cp), WAITS["service"], what="control plane listening")


def _listens(cp: BareNode) -> bool:
    assert cp.processes["controlplane"].poll() is None, cp.log_path("controlplane").read_text()
    try:
        cp.netns.connect(cp.address, PORT_XDS, timeout_seconds=0.2).close()
    except OSError:
        return False
    return True


def _node_resource(node: BareNode) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"topology.kubernetes.io/zone": node.name}},
        "spec": {"podCIDRs": [node.pod_cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": node.address}]},
    }


def _start_node(machines: BareMachines, node: BareNode) -> None:
    cp = machines.cp
    token = cp.command(
        "token", "create", "--node", node.name, "--tokens-dir", str(cp.path("/var/tokens"))
    )
    join, root = node.path("/var/join-token"), node.path("/etc/metalmesh/root-cert.pem")
    for path in (join, root, node.path(WORKLOADS_DIR) / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
    join.write_text(token)
    root.write_bytes(cp.path("/var/ca/root-cert.pem").read_bytes())
    shared = {
        "node_name": node.name,
        "xds_address": f"{cp.address}:{PORT_XDS}",
        "root_cert_path": str(root),
        "token_path": str(node.path("/var/token")),
        "zds_socket": str(node.path("/run/zds.sock")),
    }
    node.path("/run").mkdir()
    node.configure(
        "node",
        **shared,
        join_token_path=str(join),
        workloads_dir=str(node.path(WORKLOADS_DIR)),
        state_dir=str(node.path("/var/node")),
        run_dir=str(node.path("/run/node")),
        ztunnel_group="root", token_group="root", dns_upstreams=[], ipv6=False,
    )  # fmt: skip
    node.configure(
        "ztunnel",
        **shared,
        state_dir=str(node.path("/var/ztunnel")),
        tls_keylog_path=str(node.path("/run/keylog")),
    )
    node.start("node")
    node.start("ztunnel")


def bare_workload(
    mesh: Mesh, node: str, number: int, name: str, *, ambient: bool = True
) -> Workload:
    """A workload on a bare node; its namespace carries the mesh's unique name."""
    machine: Any = mesh.machines[node]
    return Workload(
        node=machine,
        namespace=f"mm-{machine.unique}",
        name=name,
        account=name,
        address=machine.pod_cidr.replace("0/24", str(number)),
        trust_domain="cluster.local",
        ambient=ambient,
    )


def settle(predicate: Any, what: str) -> float:
    """Wait for the state of a mesh; seconds it took."""
    started_at = time.monotonic()
    wait_until(predicate, WAITS["workload"], what=what)
    return time.monotonic() - started_at
