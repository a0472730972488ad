"""What is served for the resources of ``tests/golden/wds/*.yaml``, as readable JSON."""

from __future__ import annotations

import base64
import ipaddress
import json
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from metalmesh.constants import (
    TYPE_ADDRESS,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
    TYPE_NODE,
)
from metalmesh.controlplane.admission import Scan, admit
from metalmesh.controlplane.compute import ComputeOptions, compute
from metalmesh.model.resources import parse_documents
from metalmesh.proto import authorization_pb2, node_pb2, workload_pb2
from metalmesh.render.wds import MeshOptions

DIRECTORY: Final = Path(__file__).parent / "wds"
OPTIONS: Final = ComputeOptions(
    mesh=MeshOptions(cluster_id="mesh1", trust_domain="mesh.test"),
    service_cidrs=(ipaddress.ip_network("10.96.0.0/16"),),
    service_entry_cidrs=(
        ipaddress.ip_network("240.240.0.0/16"),
        ipaddress.ip_network("2001:2::/48"),
    ),
)
_MESSAGES: Final[dict[str, Any]] = {
    TYPE_ADDRESS: workload_pb2.Address,
    TYPE_AUTHORIZATION: authorization_pb2.Authorization,
    TYPE_NODE: node_pb2.Node,
    TYPE_NETWORK_POLICY: node_pb2.NetworkPolicy,
}


def cases() -> list[Path]:
    """The inputs."""
    return sorted(DIRECTORY.glob("*.yaml"))


def render(path: Path) -> str:
    """Everything served for one input, its errors and its conditions."""
    found = tuple(parse_documents(path.read_text(), path.name))
    admission = admit(Scan({path.name: found}, {}), {}, "2026-01-01T00:00:00Z")
    result = compute(admission.objects, OPTIONS)
    output: dict[str, Any] = {}
    for type_url, resources in sorted(result.snapshot.types.items()):
        for name, resource in sorted(resources.items()):
            kind = type_url.rpartition(".")[2]
            message = _MESSAGES[type_url].FromString(resource.data)
            entry = _readable(MessageToDict(message, preserving_proto_field_name=True))
            if resource.nodes is not None:
                entry["(only for nodes)"] = sorted(resource.nodes)
            output.setdefault(kind, {})[name] = entry
    output["errors"] = [str(error) for error in admission.errors]
    output["conditions"] = {
        key: [condition.to_dict() for condition in conditions]
        for key, conditions in sorted(result.conditions.items())
    }
    return json.dumps(output, indent=1, sort_keys=True) + "\n"


def _readable(value: Any, key: str = "") -> Any:
    """Bytes of addresses as people write them."""
    if isinstance(value, dict):
        return {name: _readable(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_readable(item, key) for item in value]
    if key in ("addresses", "address") and isinstance(value, str):
        return str(ipaddress.ip_address(base64.b64decode(value)))
    return value
