"""Resources of a mesh of any size, as a user would write them.

One namespace for every hundred workloads; the workloads sit on a hundred nodes. Everything is
made from its number, so that the same size is always the same mesh.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any, Final

import yaml

Resource = dict[str, Any]

WORKLOADS_PER_NAMESPACE: Final = 100
NODES: Final = 100
_FIRST_WORKLOAD: Final = int(IPv4Address("10.128.0.1"))
_FIRST_SERVICE: Final = int(IPv4Address("10.100.0.1"))


def namespaces(workloads: int) -> int:
    """How many namespaces so many workloads are in."""
    return max(1, workloads // WORKLOADS_PER_NAMESPACE)


def files(workloads: int, services: int, policies: int) -> Iterator[tuple[str, str]]:
    """Name and text of one file for each namespace of the store."""
    count = namespaces(workloads)
    for number in range(count):
        chosen: list[Resource] = [_namespace(number)]
        chosen += [_workload(i, number) for i in range(number, workloads, count)]
        chosen += [_service(i, number) for i in range(number, services, count)]
        chosen += [_policy(i, number) for i in range(number, policies, count)]
        yield f"scale-{number}.yaml", yaml.dump_all(chosen, Dumper=yaml.CSafeDumper)


def _meta(name: str, namespace: int, **more: Any) -> Resource:
    return {"name": name, "namespace": f"scale-{namespace}", **more}


def _namespace(number: int) -> Resource:
    labels = {"istio.io/dataplane-mode": "ambient"}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": f"scale-{number}", "labels": labels},
    }


def _workload(number: int, namespace: int) -> Resource:
    app = f"app-{number // namespaces(number + 1) % 20}"
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": _meta(
            f"w{number}",
            namespace,
            labels={"app": app, "version": f"v{number % 3}"},
            annotations={"ambient.metalmesh.io/node": f"scale-node-{number % NODES}"},
        ),
        "spec": {
            "address": str(IPv4Address(_FIRST_WORKLOAD + number)),
            "serviceAccount": app,
            "ports": {"http": 8080},
        },
    }


def _service(number: int, namespace: int) -> Resource:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(f"s{number}", namespace),
        "spec": {
            "selector": {"app": f"app-{number % 20}"},
            "clusterIP": str(IPv4Address(_FIRST_SERVICE + number)),
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    }


def _policy(number: int, namespace: int) -> Resource:
    """Every fifth a NetworkPolicy, the others AuthorizationPolicies."""
    labels = {"app": f"app-{number % 20}"}
    if number % 5 == 0:
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": _meta(f"n{number}", namespace),
            "spec": {
                "podSelector": {"matchLabels": labels},
                "ingress": [
                    {
                        "from": [{"podSelector": {"matchLabels": {"version": "v1"}}}],
                        "ports": [{"port": 8080}, {"port": 15008}],
                    }
                ],
            },
        }
    principals = [f"cluster.local/ns/scale-{namespace}/sa/app-{i}" for i in range(5)]
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": _meta(f"a{number}", namespace),
        "spec": {
            "selector": {"matchLabels": labels},
            "action": "ALLOW",
            "rules": [
                {
                    "from": [{"source": {"principals": principals}}],
                    "to": [{"operation": {"ports": ["8080"]}}],
                }
            ],
        },
    }
