"""The real control plane beside a :class:`tests.support.mesh_node.MeshNode`.

It runs in the namespace of the client outside; its files live below the node's directory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from typing import Any, Final

import yaml

from tests.support.mesh_node import MeshNode
from tests.support.waits import WAITS, wait_until

ADDRESS: Final = "198.18.0.2"
PLAIN: Final = {"istio.io/dataplane-mode": "none"}


class Plane:
    """The control plane's process and its store."""

    def __init__(self, node: MeshNode) -> None:
        self._node = node
        self._root = node.directory / "plane"
        self.store = self._root / "store"
        self.store.mkdir(parents=True)
        (self._root / "tokens").mkdir()
        (self._root / "state").mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._run("ca", "init", "--dir", str(self._root / "ca"), "--trust-domain", "cluster.local")
        root = (self._root / "ca" / "root-cert.pem").read_bytes()
        (node.directory / "root-cert.pem").write_bytes(root)
        self._config = {
            "component": "controlplane",
            "server_names": [ADDRESS],
            "store_dir": str(self.store),
            "ca_dir": str(self._root / "ca"),
            "tokens_dir": str(self._root / "tokens"),
            "state_dir": str(self._root / "state"),
        }

    def _run(self, *arguments: str) -> str:
        line = [sys.executable, "-m", "metalmesh.cli.main", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def join_token(self, node: str = "node1") -> str:
        tokens = str(self._root / "tokens")
        return self._run("token", "create", "--node", node, "--tokens-dir", tokens)

    def start(self) -> None:
        """Run it."""
        text = yaml.safe_dump(self._config)
        (self._root / "controlplane.yaml").write_text(text)
        log = (self._root / "log").open("ab")
        line = [sys.executable, "-m", "metalmesh.cli.main", "controlplane", "run"]
        self._process = self._node.outside.popen(
            *line, "--config", str(self._root / "controlplane.yaml"), stderr=log
        )
        log.close()
        wait_until(self._listens, WAITS["service"], what="control plane listens")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._root / "log").read_text()
        try:
            self._node.outside.connect(ADDRESS, 15012).close()
        except OSError:
            return False
        return True

    def status(self) -> Any:
        """Every object with its conditions, as it is now."""

        def ask() -> Any:
            with urllib.request.urlopen(
                "http://127.0.0.1:15014/debug/resources", timeout=5
            ) as answer:
                return json.load(answer)

        return self._node.outside.do(ask)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def put(self, kind: str, name: str, api: str, **fields: Any) -> None:
        """Write one object; names are made of the namespace's file convention."""
        metadata = {"name": name, **fields.pop("metadata", {})}
        text = yaml.safe_dump({"apiVersion": api, "kind": kind, "metadata": metadata, **fields})
        directory = self.store / kind / metadata.get("namespace", "_cluster")
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".{name}"
        temporary.write_text(text)
        temporary.rename(directory / f"{name}.yaml")

    def remove(self, kind: str, namespace: str, name: str) -> None:
        (self.store / kind / namespace / f"{name}.yaml").unlink()

    def place(self, name: str, *addresses: str, node: str = "node1", port: int = 80) -> None:
        """The store's copy of a workload."""
        annotations = {"ambient.metalmesh.io/node": node}
        if addresses[1:]:
            annotations["ambient.metalmesh.io/addresses"] = ",".join(addresses[1:])
        self.put(
            "WorkloadEntry",
            name,
            "networking.istio.io/v1",
            metadata={
                "namespace": self._node.unique,
                "annotations": annotations,
                "labels": {"app": name, **PLAIN},
            },
            spec={"address": addresses[0], "serviceAccount": name, "ports": {"http": port}},
        )

    def deny_ingress(self, app: str) -> None:
        self.put(
            "NetworkPolicy",
            f"deny-{app}",
            "networking.k8s.io/v1",
            metadata={"namespace": self._node.unique},
            spec={"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]},
        )
