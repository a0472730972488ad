"""One node with a real ztunnel, in namespaces, beside a scripted control plane and node agent.

The stage plays systemd too: it keeps the fd store and gives it back when it starts the ztunnel
again. Workloads ``w1``, ``w2``, ... hang on the node by a veth each and are redirected by the
rules the node agent renders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from pyroute2 import IPRoute, netns

from metalmesh.constants import (
    MARK_MASK,
    MARK_TRACKED,
    PORT_METRICS,
    PORT_READINESS,
    PORT_ZTUNNEL_ADMIN,
    ROUTE_TABLE,
    RULE_PRIORITY,
)
from metalmesh.model.workload import TunnelProtocol, Workload
from metalmesh.net.nft import apply_ruleset
from metalmesh.render.redirection import RedirectionConfig, render_redirection
from metalmesh.zds.messages import (
    AddWorkload,
    DelWorkload,
    KeepWorkload,
    Request,
    SnapshotSent,
    decode_hello,
    decode_response,
    encode_request,
)
from tests.support.netns import Netns, create_netns
from tests.support.scripted_plane import ScriptedPlane
from tests.support.scripted_systemd import Successor, Systemd
from tests.support.waits import WAITS, wait_until

NAMESPACE = "shop"
NODE = "node1"


class ScriptedAgent:
    """The node agent's end of ZDS, one connection at a time."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(10)
        self._peer: socket.socket | None = None

    def accept(self) -> None:
        """Take the ztunnel's connection and its hello."""
        self.drop()
        self._peer, _ = self._listener.accept()
        self._peer.settimeout(15)
        decode_hello(self._peer.recv(1024))

    def ask(self, request: Request, netns_path: Path | None = None) -> str:
        """Send one request; return the error of the answer."""
        assert self._peer is not None, "no ztunnel is connected"
        packet = encode_request(request)
        if netns_path is None:
            self._peer.send(packet)
        else:
            with netns_path.open() as handle:
                socket.send_fds(self._peer, [packet], [handle.fileno()])
        return decode_response(self._peer.recv(1024)).error

    def drop(self) -> None:
        """Break the connection."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def close(self) -> None:
        """Break the connection and listen no more."""
        self.drop()
        self._listener.close()


def stored(workloads: int) -> int:
    """Descriptors in the fd store: namespace, three listeners, four of DNS each; two workers."""
    return 8 * workloads + 2


@dataclasses.dataclass
class Guest:
    """A workload of the node."""

    number: int
    netns: Netns
    workload: Workload

    @property
    def announcement(self) -> AddWorkload:
        """What the node agent says of it."""
        w = self.workload
        return AddWorkload(w.uid, w.name, w.namespace, w.service_account)


class Node:
    """A namespace that stands for a machine, and workloads that hang on it."""

    def __init__(self) -> None:
        self.unique = f"mm-z{secrets.token_hex(3)}"
        self.node = self._make_netns("node", "127.0.0.1")
        self.guests: list[Guest] = []

    def _make_netns(self, name: str, address: str) -> Netns:
        full = f"{self.unique}-{name}"
        create_netns(full)
        with IPRoute(netns=full) as inside:
            inside.link("set", index=1, state="up")
        return Netns(Path("/run/netns") / full, address)

    def add_guest(self, *, dns_capture: bool = False, **changes: Any) -> Guest:
        """A redirected namespace with its address; neither control plane nor ztunnel know it."""
        number = len(self.guests) + 1
        address = f"10.244.1.{number}"
        inner = self._make_netns(f"w{number}", address)
        self._link(inner, number, address)
        with inner.path.open() as handle:
            rules = render_redirection(RedirectionConfig(ipv6=False, dns_capture=dns_capture))
            apply_ruleset(rules, handle.fileno())
        mark = f"{MARK_TRACKED:#x}/{MARK_MASK:#x}"
        inner.run(
            *("ip", "rule", "add", "pref", str(RULE_PRIORITY), "fwmark", mark),
            *("lookup", str(ROUTE_TABLE)),
        )
        inner.run(
            *("ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", str(ROUTE_TABLE))
        )
        values: dict[str, Any] = {
            "uid": f"Kubernetes/networking.istio.io/WorkloadEntry/{NAMESPACE}/w{number}",
            "name": f"w{number}",
            "namespace": NAMESPACE,
            "service_account": f"sa{number}",
            "addresses": (ip_address(address),),
            "protocol": TunnelProtocol.HBONE,
            "node": NODE,
            "workload_name": f"w{number}",
            "canonical_name": f"w{number}",
            "canonical_revision": "v1",
            **changes,
        }
        guest = Guest(number, inner, Workload(**values))
        self.guests.append(guest)
        return guest

    def _link(self, inner: Netns, number: int, address: str) -> None:
        outer_name = f"w{number}"
        with IPRoute(netns=str(self.node.path)) as node, inner.path.open() as handle:
            peer = {"ifname": "eth0", "net_ns_fd": handle.fileno()}
            node.link("add", ifname=outer_name, kind="veth", peer=peer)
            index = node.link_lookup(ifname=outer_name)[0]
            node.link("set", index=index, state="up")
            node.addr("add", index=index, address="169.254.1.1", prefixlen=32)
            with IPRoute(netns=str(inner.path)) as inside:
                eth0 = inside.link_lookup(ifname="eth0")[0]
                inside.addr("add", index=eth0, address=address, prefixlen=32)
                inside.link("set", index=eth0, state="up")
                inside.route("add", dst="169.254.1.1/32", oif=eth0, scope="link")
                inside.route("add", dst="default", gateway="169.254.1.1", oif=eth0)
            node.route("add", dst=f"{address}/32", oif=index, scope="link")
        self.node.do(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))


class Stage(Node):
    """Everything; made by :func:`ztunnel_stage`."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.log_path = directory / "ztunnel.log"
        self.plane = ScriptedPlane(self.node, directory)
        self.agent = ScriptedAgent(directory / "zds.sock")
        self.systemd = Systemd(directory)
        self.process: subprocess.Popen[bytes] | Successor | None = None
        #: workers of processes that were taken over from
        self._former: list[int] = []
        self.settings: dict[str, Any] = {
            "component": "ztunnel",
            "node_name": NODE,
            "xds_address": "127.0.0.1:15012",
            "root_cert_path": str(self.plane.root_path),
            "token_path": str(directory / "token"),
            "zds_socket": str(directory / "zds.sock"),
            "state_dir": str(directory),
            "handover_socket": str(directory / "handover.sock"),
            "stop_deadline_seconds": 2,
        }
        (directory / "token").write_text("token-of-node1\n")

    # --- workloads -------------------------------------------------------------------------
    def introduce(self, *guests: Guest) -> None:
        """Have control plane and ztunnel know workloads."""
        self.plane.set(*(guest.workload for guest in guests))
        for guest in guests:
            assert self.agent.ask(guest.announcement, guest.netns.path) == ""

    def snapshot(self, *guests: Guest, keep: tuple[Guest, ...] = ()) -> None:
        """A connection's first exchange, complete."""
        self.agent.accept()
        for guest in guests:
            assert self.agent.ask(guest.announcement, guest.netns.path) == ""
        for guest in keep:
            assert self.agent.ask(KeepWorkload(guest.workload.uid)) == ""
        assert self.agent.ask(SnapshotSent()) == ""

    def forget(self, guest: Guest) -> None:
        """Have the ztunnel stop serving a workload."""
        assert self.agent.ask(DelWorkload(guest.workload.uid)) == ""

    # --- the ztunnel -------------------------------------------------------------------------
    def start(self) -> None:
        """Start it as systemd would, with what is in the fd store."""
        config = self.directory / "ztunnel.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        names = ":".join(name for name, _ in self.systemd.stored)
        # out of the way of the numbers they are moved to
        fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 1000) for _, fd in self.systemd.stored]
        # a shell puts the descriptors to 3, 4, ... and execs: its pid is then the ztunnel's
        moves = " ".join(f"{number}<&{fd}" for number, fd in enumerate(fds, 3))
        closes = " ".join(f"{fd}<&-" for fd in fds)
        script = f'export LISTEN_PID=$$; exec "$@" {moves} {closes}'
        command = [sys.executable, "-m", "metalmesh.cli.main", "ztunnel", "run"]
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.systemd.path),
            "LISTEN_FDS": str(len(fds)),
            "LISTEN_FDNAMES": names,
            "WATCHDOG_USEC": "4000000",
        }
        with self.log_path.open("ab") as log:
            self.process = self.node.popen(
                *("bash", "-c", script, "bash", *command, "--config", str(config)),
                env=environ,
                pass_fds=fds,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        for fd in fds:
            os.close(fd)

    def reload(self) -> int:
        """``ExecReload`` of the unit; its exit status. The log has what it complained about."""
        assert self.process is not None
        (self.directory / "ztunnel.yaml").write_text(yaml.safe_dump(self.settings))
        self._former += self.worker_pids()
        command = [sys.executable, "-m", "metalmesh.cli.main", "ztunnel", "reload"]
        with self.log_path.open("ab") as log:
            child = self.node.popen(
                *(*command, "--config", str(self.directory / "ztunnel.yaml")),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        status = child.wait(WAITS["service"].seconds)
        if status == 0:
            self.process.wait(WAITS["service"].seconds)
            self.process = Successor(self.systemd.main_pid)
        return status

    def stop(self, number: int = signal.SIGTERM, timeout_seconds: float = 10.0) -> int:
        """Send a signal and wait for the end of main; return its status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(timeout_seconds)
        self.process = None
        return status

    def worker_pids(self) -> list[int]:
        """Processes main has started."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def get(self, port: int, path: str, *, method: str = "GET") -> tuple[int, str]:
        """Ask one of its ports; status and body."""

        def fetch() -> tuple[int, str]:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError as error:
                return 0, str(error)

        return self.node.do(fetch)

    def dump(self) -> dict[str, Any]:
        """Its configuration dump."""
        status, body = self.get(PORT_ZTUNNEL_ADMIN, "/config_dump")
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def metrics(self) -> str:
        """Its metrics."""
        status, body = self.get(PORT_METRICS, "/metrics")
        assert status == 200, body
        return body

    def readiness(self) -> tuple[int, str]:
        """Status and text of its readiness port."""
        status, body = self.get(PORT_READINESS, "/healthz/ready")
        return status, body.strip()

    def wait_ready(self) -> None:
        """Until it has everything."""
        wait_until(lambda: self.readiness()[0] == 200, WAITS["service"], what="ztunnel ready")

    def log(self) -> str:
        """What it has logged so far."""
        return self.log_path.read_text(errors="replace")

    def wait_log(self, *words: str) -> str:
        """The first log line with all the words."""

        def found() -> str:
            lines = self.log().splitlines()
            return next((line for line in lines if all(word in line for word in words)), "")

        return wait_until(found, WAITS["log_line"], what=f"a log line with {words}")

    def close(self) -> None:
        """Remove everything."""
        with contextlib.ExitStack() as stack:
            for path in [self.node.path, *(guest.netns.path for guest in self.guests)]:
                stack.callback(netns.remove, path.name)
            stack.callback(self.systemd.close)
            stack.callback(self.agent.close)
            if self.process is not None:
                workers = [*self.worker_pids(), *self._former]
                self.process.kill()
                self.process.wait()
                for pid in workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if self.plane.running:
                self.plane.stop()


@contextlib.contextmanager
def ztunnel_stage(directory: Path) -> Iterator[Stage]:
    """A stage with nothing started."""
    stage = Stage(directory)
    try:
        yield stage
    finally:
        stage.close()
