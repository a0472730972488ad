"""Rules of rendering that a table says better than a golden file."""

from __future__ import annotations

import pytest
import yaml

from metalmesh.model.resources import (
    ParsedObject,
    ServiceResource,
    WorkloadEntry,
    parse_object,
)
from metalmesh.render.wds import MeshOptions, endpoint_ports, in_mesh, render_workload

ENTRY = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a, namespace: demo, labels: %s}
spec: {address: 10.0.0.1, ports: {web: 8080, dns: 5353, https: 8443}}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: s, namespace: demo}
spec: {ports: [%s]}
"""


def _read(text: str) -> WorkloadEntry | ServiceResource:
    (found,) = parse_object(yaml.safe_load(text), "f")
    assert isinstance(found, ParsedObject), found
    assert isinstance(found.resource, WorkloadEntry | ServiceResource)
    return found.resource


AMBIENT, NONE = "istio.io/dataplane-mode: ambient", "istio.io/dataplane-mode: none"
ENROLLED = [
    # entry's labels, namespace's labels, in the mesh
    ("", "", False),
    (AMBIENT, "", True),
    ("", AMBIENT, True),
    (NONE, AMBIENT, False),
    (AMBIENT, NONE, True),
    ("", NONE, False),
    ("istio.io/dataplane-mode: other", AMBIENT, True),
    ("istio.io/dataplane-mode: other", "", False),
]


@pytest.mark.parametrize(("own", "namespace", "expected"), ENROLLED)
def test_enrolment(own: str, namespace: str, expected: bool) -> None:
    labels = yaml.safe_load(f"{{{namespace}}}")
    assert in_mesh(_read(ENTRY % f"{{{own}}}"), labels) is expected


PORTS = [
    ("{port: 80}", {80: 80}),
    ("{port: 80, targetPort: 9090}", {80: 9090}),
    ("{port: 80, targetPort: web}", {80: 8080}),
    ("{port: 80, targetPort: missing}", {}),
    ("{name: web, port: 80}", {80: 8080}),
    ("{name: web, port: 80, targetPort: 9090}", {80: 8080}),
    ("{name: web, port: 80, targetPort: https}", {80: 8443}),
    ("{port: 53, protocol: UDP, targetPort: dns}", {}),
    ("{name: a, port: 53, protocol: UDP}, {name: b, port: 53, targetPort: 54}", {53: 54}),
]


@pytest.mark.parametrize(("ports", "expected"), PORTS)
def test_ports_of_an_endpoint(ports: str, expected: dict[int, int]) -> None:
    """Kubernetes' named ports; Istio's ``WorkloadEntry.ports`` by the service port's name."""
    assert endpoint_ports(_read(SERVICE % ports).ports, _read(ENTRY % "{}").ports) == expected


NAMES = [
    ("{}", "a", "a", "latest"),
    ("{app: x, version: v1}", "x", "x", "v1"),
    ("{app: x, app.kubernetes.io/name: y, app.kubernetes.io/version: v2}", "x", "y", "v2"),
    ("{app: x, service.istio.io/canonical-name: z}", "x", "z", "latest"),
    ("{version: v1, service.istio.io/canonical-revision: v3}", "a", "a", "v3"),
]


@pytest.mark.parametrize(("labels", "workload", "name", "revision"), NAMES)
def test_names_for_telemetry(labels: str, workload: str, name: str, revision: str) -> None:
    found = render_workload(_read(ENTRY % labels), {}, [], [], MeshOptions())
    assert (found.workload_name, found.canonical_name, found.canonical_revision) == (
        workload,
        name,
        revision,
    )
