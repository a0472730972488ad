# SPDX-License-Identifier: Apache-2.0
# PRIVATE to the collection metalmesh.ambient.

"""From `mesh_workloads` of a node to the objects of the mesh. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError

ANNOTATION_NODE = "ambient.metalmesh.io/node"
ANNOTATION_ADDRESSES = "ambient.metalmesh.io/addresses"
ANNOTATION_PROBE = "ambient.metalmesh.io/probe"
ANNOTATION_NETNS = "ambient.metalmesh.io/netns"
#: the machine's own namespace
HOST = "host"
#: key of a workload and the annotation that it becomes, a list joined by commas
EXCLUSIONS = {
    "exclude_inbound_ports": "ambient.metalmesh.io/exclude-inbound-ports",
    "exclude_outbound_ports": "ambient.metalmesh.io/exclude-outbound-ports",
    "exclude_outbound_cidrs": "ambient.metalmesh.io/exclude-outbound-cidrs",
}
LABEL_DATAPLANE_MODE = "istio.io/dataplane-mode"

#: keys of a workload and the type of their values
KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "namespace": str,
    "service_account": str,
    "index": int,
    "addresses": list,
    "labels": dict,
    "ports": dict,
    "locality": str,
    "weight": int,
    "dataplane_mode": str,
    "unit": str,
    "probe": dict,
    "netns": str,
    **dict.fromkeys(EXCLUSIONS, list),
}
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


def plan_workloads(
    definitions: list[dict[str, Any]],
    node: str,
    cidrs: list[str],
    own_addresses: list[str],
) -> list[dict[str, Any]]:
    """Return per workload its netns, unit and WorkloadEntry; errors name the place in the list.

    ``own_addresses`` are the machine's: those of a workload in its own namespace.
    """
    planned = [
        _plan_one(definition, node, cidrs, own_addresses, f"mesh_workloads[{index}] of {node}")
        for index, definition in enumerate(definitions)
    ]
    for kind in ("netns", "addresses"):
        taken: dict[str, str] = {}
        for item in planned:
            for value in item[kind] if isinstance(item[kind], list) else [item[kind]]:
                if value in taken:
                    raise ModuleError(
                        f"mesh_workloads of {node}: {item['key']} and {taken[value]} have {value}",
                        "Give one of them another name or address",
                    )
                taken[value] = item["key"]
    return planned


def _plan_one(
    definition: Any, node: str, cidrs: list[str], own_addresses: list[str], where: str
) -> dict[str, Any]:
    _check(definition, where)
    name, namespace = definition["name"], definition["namespace"]
    on_host = definition.get("netns") == HOST
    if on_host:
        addresses = _host_addresses(definition, own_addresses, where)
    else:
        addresses = _addresses(definition, cidrs, where)
    return {
        "key": f"{namespace}/{name}",
        "netns": HOST if on_host else f"{namespace}-{name}",
        "namespace": namespace,
        "unit": definition.get("unit") or "",
        "addresses": addresses,
        "entry": _entry(definition, node, addresses),
        "service_account": {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": definition.get("service_account") or "default",
                "namespace": namespace,
            },
        },
    }


def _check(definition: Any, where: str) -> None:
    if not isinstance(definition, dict):
        raise ModuleError(f"{where}: is {type(definition).__name__}, must be a mapping")
    unknown = sorted(definition.keys() - KEYS.keys())
    if unknown:
        raise ModuleError(
            f"{where}: unknown key {unknown[0]}", f"Known are {', '.join(sorted(KEYS))}"
        )
    for key, kind in KEYS.items():
        value = definition.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ModuleError(f"{where}: {key}: {value!r} is no {getattr(kind, '__name__', kind)}")
    if definition.get("netns") not in {None, HOST}:
        raise ModuleError(
            f"{where}: netns: {definition['netns']!r} is not {HOST}",
            "Leave it out for a namespace of its own",
        )
    for key in ("name", "namespace"):
        if not _LABEL.match(definition.get(key) or ""):
            raise ModuleError(
                f"{where}: {key}: {definition.get(key)!r} is no DNS label",
                "Use lower-case letters, digits and '-', at most 63",
            )


def _addresses(definition: dict[str, Any], cidrs: list[str], where: str) -> list[str]:
    index, given = definition.get("index"), definition.get("addresses")
    if (index is None) == (not given):
        raise ModuleError(
            f"{where}: needs either index or addresses", "index: 10 is the tenth of mesh_pod_cidrs"
        )
    networks = [_network(cidr, where) for cidr in cidrs]
    if given:
        return [_inside(str(address), networks, where) for address in given]
    if not networks:
        raise ModuleError(
            f"{where}: index needs mesh_pod_cidrs of the node", "Set it for this host"
        )
    return [_indexed(network, index or 0, where) for network in networks]


def _host_addresses(definition: dict[str, Any], own: list[str], where: str) -> list[str]:
    """All of the machine's addresses, or those of them that are given."""
    if definition.get("index") is not None:
        raise ModuleError(
            f"{where}: index: a workload with netns: {HOST} has the machine's addresses",
            "Leave index out",
        )
    given = [str(address) for address in definition.get("addresses") or own]
    for address in given:
        if address not in own:
            raise ModuleError(
                f"{where}: addresses: {address} is none of the machine's",
                f"mesh_node_addresses has {', '.join(own) or 'none'}",
            )
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ModuleError(
                f"{where}: addresses: {address!r} is a name",
                "Set mesh_node_addresses of the machine to its IP addresses",
            ) from None
    if not given:
        raise ModuleError(f"{where}: addresses: the machine has none", "Set mesh_node_addresses")
    return given


def _network(cidr: str, where: str) -> Any:
    try:
        return ipaddress.ip_network(cidr)
    except ValueError as error:
        raise ModuleError(f"{where}: mesh_pod_cidrs: {error}") from None


def _indexed(network: Any, index: int, where: str) -> str:
    if not 0 < index < network.num_addresses - 1:
        raise ModuleError(
            f"{where}: index: {index} is not in {network}",
            f"Choose 1 to {min(network.num_addresses - 2, 65535)}",
        )
    return str(network[index])


def _inside(text: str, networks: list[Any], where: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ModuleError(f"{where}: addresses: {error}") from None
    if networks and not any(address in network for network in networks):
        raise ModuleError(
            f"{where}: addresses: {address} is in none of the networks of this node",
            f"Other nodes route only mesh_pod_cidrs here: {', '.join(map(str, networks))}",
        )
    return str(address)


def _entry(definition: dict[str, Any], node: str, addresses: list[str]) -> dict[str, Any]:
    """Return the WorkloadEntry; what is not given stays out of it."""
    metadata: dict[str, Any] = {
        "name": definition["name"],
        "namespace": definition["namespace"],
        "annotations": {ANNOTATION_NODE: node},
    }
    if len(addresses) > 1:
        metadata["annotations"][ANNOTATION_ADDRESSES] = ",".join(addresses[1:])
    if definition.get("probe"):
        metadata["annotations"][ANNOTATION_PROBE] = json.dumps(definition["probe"])
    if definition.get("netns"):
        metadata["annotations"][ANNOTATION_NETNS] = definition["netns"]
    for key, annotation in EXCLUSIONS.items():
        if definition.get(key):
            metadata["annotations"][annotation] = ",".join(map(str, definition[key]))
    labels = {str(key): str(value) for key, value in (definition.get("labels") or {}).items()}
    if definition.get("dataplane_mode"):
        labels[LABEL_DATAPLANE_MODE] = definition["dataplane_mode"]
    if labels:
        metadata["labels"] = labels
    spec: dict[str, Any] = {
        "address": addresses[0],
        "serviceAccount": definition.get("service_account") or "default",
    }
    for key in ("ports", "locality", "weight"):
        if definition.get(key) is not None:
            spec[key] = definition[key]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": metadata,
        "spec": spec,
    }


def store_objects(planned: list[dict[str, Any]], namespace_labels: dict[str, str]) -> list[Any]:
    """Return what the store needs for the workloads: namespaces, service accounts, entries."""
    objects: list[Any] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": dict(namespace_labels)},
        }
        for name in sorted({item["namespace"] for item in planned})
    ]
    for item in planned:
        if item["service_account"] not in objects:
            objects.append(item["service_account"])
    return objects + [item["entry"] for item in planned]


__all__ = ["plan_workloads", "store_objects"]
