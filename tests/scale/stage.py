"""A real control plane and a real ztunnel with two workloads, in one node's namespace."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from metalmesh.pki.tokens import issue_node_token
from tests.support.waits import Wait, wait_until
from tests.support.ztunnel_stage import NAMESPACE, NODE, Guest, Stage, ztunnel_stage

LOADED = Wait(240.0, "reading and computing ten thousand workloads takes tens of seconds")
FORCE = Wait(20.0, "a change is in force in a second; the rest shows by how much it was late")
VIP = "10.99.0.1"


class ControlPlane:
    """The product's control plane in the node's namespace, on its usual ports."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.directory = stage.directory / "plane"
        self.store = self.directory / "store"
        for name in ("store", "tokens", "state"):
            (self.directory / name).mkdir(parents=True)
        ca = self.directory / "ca"
        _metalmesh("ca", "init", "--dir", str(ca))
        stage.settings["root_cert_path"] = str(ca / "root-cert.pem")
        stage.settings["xds_address"] = "localhost:15012"
        self._config = {
            "component": "controlplane",
            "listen_address": "127.0.0.1",
            "store_dir": str(self.store),
            "ca_dir": str(ca),
            "tokens_dir": str(self.directory / "tokens"),
            "state_dir": str(self.directory / "state"),
            "server_names": ["localhost", "127.0.0.1"],
            "log_format": "json",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; return the seconds until it serves what is in the store."""
        path = self.directory / "controlplane.yaml"
        path.write_text(yaml.safe_dump(self._config))
        began = time.monotonic()
        with (self.directory / "log").open("ab") as log:
            self.process = self._stage.node.popen(
                *_command("controlplane", "run", "--config", str(path)), stderr=log
            )
        wait_until(self._serves, LOADED, what="the control plane serves")
        took = time.monotonic() - began
        key_pem = (self.directory / "state" / "node-token-key.pem").read_bytes()
        key: Any = load_pem_private_key(key_pem, None)
        token = issue_node_token(key, NODE, "scale", int(time.time()), 86400)
        (self._stage.directory / "token").write_text(token)
        return took

    def _serves(self) -> bool:
        assert self.process is not None
        log = (self.directory / "log").read_text()
        assert self.process.poll() is None, log
        return '"serving"' in log

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def put(self, name: str, *resources: dict[str, Any]) -> None:
        """Write a file of the store by rename, as the product's tools do."""
        temporary = self.store / f".{name}.new"
        temporary.write_text(yaml.safe_dump_all(resources))
        temporary.rename(self.store / name)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "metalmesh.cli.main", *arguments]


def _metalmesh(*arguments: str) -> None:
    subprocess.run(_command(*arguments), check=True, capture_output=True)


def resources_of(guest: Guest) -> list[dict[str, Any]]:
    """The workload, and a service in front of it."""
    workload = guest.workload
    entry = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": workload.name,
            "namespace": NAMESPACE,
            "labels": {"app": workload.name},
            "annotations": {"ambient.metalmesh.io/node": NODE},
        },
        "spec": {
            "address": guest.netns.address,
            "serviceAccount": workload.service_account,
            "ports": {"http": 8080},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": workload.name, "namespace": NAMESPACE},
        "spec": {
            "selector": {"app": workload.name},
            "clusterIP": f"10.99.0.{guest.number}",
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    }
    return [entry, service]


@contextlib.contextmanager
def scale_stage(directory: Path) -> Iterator[tuple[Stage, ControlPlane]]:
    """Client and server workloads on a node whose ztunnel is not started; an empty store."""
    with ztunnel_stage(directory) as stage, contextlib.ExitStack() as stack:
        plane = ControlPlane(stage)
        stack.callback(plane.stop)
        guests = [stage.add_guest(), stage.add_guest()]
        namespace = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"istio.io/dataplane-mode": "ambient"}},
        }
        plane.put("guests.yaml", namespace, *(r for g in guests for r in resources_of(g)))
        yield stage, plane
