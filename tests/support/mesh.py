"""A converged mesh as tests use it: workloads of their own, resources, logs and metrics.

Workloads are declared the way the roles do it: one WorkloadEntry, in the store and on its node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from metalmesh import constants
from metalmesh.model.resources.workload_entry import ANNOTATION_ADDRESSES
from tests.support.machines import Journal, Machine, Machines, netns_unit
from tests.support.netns import Netns, in_netns
from tests.support.waits import WAITS, wait_until

Resource = Mapping[str, Any]
ZTUNNEL, NODE_AGENT = "metalmesh-ztunnel", "metalmesh-node"
CONTROL_PLANE = "metalmesh-controlplane"
_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One workload and where it lives."""

    node: Machine
    namespace: str
    name: str
    account: str
    address: str
    trust_domain: str
    address_v6: str = ""
    ambient: bool = True
    #: in the machine's own namespace
    on_host: bool = False
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def netns_name(self) -> str:
        """Its network namespace on the node."""
        return constants.HOST_NETNS if self.on_host else f"{self.namespace}-{self.name}"

    @property
    def netns(self) -> Netns:
        """Its network namespace, to run things in."""
        if self.on_host:
            return dataclasses.replace(self.node.netns, address=self.address)
        return self.node.inner_netns(self.netns_name, self.address)

    @property
    def unit(self) -> str:
        """The unit that makes its network namespace."""
        return netns_unit(self.netns_name)

    @property
    def spec_path(self) -> str:
        """Its local description on the node."""
        return f"{constants.WORKLOADS_DIR}/{self.netns_name}.yaml"

    @property
    def identity(self) -> str:
        """Its SPIFFE identity."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.account}"

    @property
    def principal(self) -> str:
        """Its identity as policies spell it."""
        return self.identity.removeprefix("spiffe://")

    @property
    def entry(self) -> Resource:
        """The object that declares it."""
        mode = "ambient" if self.ambient else "none"
        annotations = {constants.ANNOTATION_NODE: self.node.name, **self.annotations}
        if self.on_host:
            annotations[constants.ANNOTATION_NETNS] = constants.HOST_NETNS
        if self.address_v6:
            annotations[ANNOTATION_ADDRESSES] = self.address_v6
        return {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": {
                    "app": self.name,
                    constants.LABEL_DATAPLANE_MODE: mode,
                    **self.labels,
                },
                "annotations": annotations,
            },
            "spec": {"address": self.address, "serviceAccount": self.account},
        }


class Mesh:
    """The mesh that ``site.yml`` made of a lab."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.nodes = machines.group("mesh_nodes")
        (self.control_plane,) = machines.group("mesh_control_plane")
        self.external = machines.group("mesh_external")

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The control plane's configuration."""
        return self.control_plane.config("controlplane")

    # --- resources -------------------------------------------------------------------------
    def store_path(self, resource: Resource) -> Path:
        """Where an object lives in the store."""
        metadata = resource["metadata"]
        place = metadata.get("namespace", "_cluster")
        relative = f"{resource['kind']}/{place}/{metadata['name']}.yaml"
        return self.control_plane.path(f"{self.settings['store_dir']}/{relative}")

    def apply(self, resource: Resource) -> None:
        """Write an object into the store, atomically."""
        self.write(self.store_path(resource), yaml.safe_dump(dict(resource), sort_keys=False))

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Write a file by renaming it into place, as the modules do."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text)
        temporary.chmod(0o644)
        temporary.rename(path)

    def delete(self, resource: Resource) -> None:
        """Remove an object from the store; that it is gone already is fine."""
        self.store_path(resource).unlink(missing_ok=True)

    @contextlib.contextmanager
    def applied(self, *resources: Resource) -> Iterator[None]:
        """Objects that are in the store during the block."""
        try:
            for resource in resources:
                self.apply(resource)
            yield
        finally:
            for resource in reversed(resources):
                self.delete(resource)

    # --- workloads -------------------------------------------------------------------------
    def add_workload(self, workload: Workload) -> None:
        """Declare a workload and make its namespace; redirection is in force when this returns."""
        self.write(
            workload.node.path(workload.spec_path),
            yaml.safe_dump(dict(workload.entry), sort_keys=False),
        )
        self.apply(workload.entry)
        workload.node.start_workload(workload.netns_name)

    def remove_workload(self, workload: Workload) -> None:
        """Undo ``add_workload``, as far as it came."""
        workload.node.stop_workload(workload.netns_name)
        self.delete(workload.entry)
        workload.node.path(workload.spec_path).unlink(missing_ok=True)

    # --- what the ztunnels tell ------------------------------------------------------------
    def keylog(self) -> str:
        """TLS secrets the lab's ztunnels wrote down (never outside of a lab); both ends do."""
        lines: dict[str, None] = {}
        for node in self.nodes:
            path = node.config("ztunnel").get("tls_keylog_path", "")
            assert path, f"{node.name}: the lab's ztunnel has no tls_keylog_path"
            file = node.path(path)
            lines |= dict.fromkeys(file.read_text().splitlines() if file.exists() else [])
        return "\n".join(lines) + "\n"

    @staticmethod
    def access_log(node: Machine) -> Journal:
        """The ztunnel's log on a node from now on."""
        return node.journal(ZTUNNEL)

    @staticmethod
    def metric(
        node: Machine, name: str, *, port: int = constants.PORT_METRICS, **labels: str
    ) -> float:
        """Sum of a metric's samples that carry these labels; the ztunnel's by default."""
        text = node.get(port, "/metrics")
        return sum(
            float(value)
            for found, fields, value in _SAMPLE.findall(text)
            if found == name and labels.items() <= dict(_LABEL.findall(fields)).items()
        )

    @staticmethod
    def drop_tunnels(*workloads: Workload) -> None:
        """Abort the HBONE connections of workloads: the next exchange is seen from its SYN on."""
        for workload in workloads:
            for side in ("sport", "dport"):
                command = ["ss", "-K", "-H", "-t", side, "=", str(constants.PORT_HBONE)]
                in_netns(
                    workload.netns.path,
                    lambda command=command: subprocess.run(  # type: ignore[misc]
                        command, capture_output=True, check=False
                    ),
                )

    @staticmethod
    def wait_ready(node: Machine) -> None:
        """Wait until a node's ztunnel says that it has everything it needs."""

        def ready() -> bool:
            try:
                return node.get(constants.PORT_READINESS, "/healthz/ready").strip() == "ready"
            except OSError:
                return False

        wait_until(ready, WAITS["service"], what=f"{node.name}: ztunnel ready")
