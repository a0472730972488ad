"""Computation: incremental results equal fresh ones, and whatever parses can be computed."""

from __future__ import annotations

import ipaddress
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metalmesh.constants import TYPE_ADDRESS, TYPE_AUTHORIZATION, TYPE_NETWORK_POLICY
from metalmesh.controlplane.admission import Scan, admit
from metalmesh.controlplane.compute import Computation, ComputeOptions, compute
from metalmesh.controlplane.snapshot import changed_names
from metalmesh.model.resources import ParsedObject, parse_object
from tests.golden.wds_cases import cases
from tests.unit.controlplane.conftest import NOW, entry
from tests.unit.model.resources.test_parse import _objects

OPTIONS = ComputeOptions(service_cidrs=(ipaddress.ip_network("10.96.0.0/16"),))
UID = "Kubernetes/networking.istio.io/WorkloadEntry/demo/"

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: demo}
spec: {selector: {matchLabels: {app: %s}}, rules: [{to: [{operation: {ports: ["%s"]}}]}]}
"""


def _changed(one: Computation, other: Computation) -> dict[str, frozenset[str]]:
    return changed_names(one.snapshot, other.snapshot)


def test_change_of_a_policy_rerenders_only_the_workloads_it_selects(admit_files: Any) -> None:
    files = {
        "a.yaml": entry("a", "10.0.0.1", labels="{app: x}"),
        "b.yaml": entry("b", "10.0.0.2", labels="{app: y}"),
        "c.yaml": entry("c", "10.0.0.3"),
        "p.yaml": POLICY % ("x", 80),
    }
    first = admit_files(files)
    one = compute(first.objects, OPTIONS)
    two = compute(admit_files({**files, "p.yaml": POLICY % ("y", 80)}, first).objects, OPTIONS, one)
    assert _changed(one, two) == {TYPE_ADDRESS: {UID + "a", UID + "b"}}
    kept = UID + "c"
    assert (
        two.snapshot.of_type(TYPE_ADDRESS)[kept].version
        == one.snapshot.of_type(TYPE_ADDRESS)[kept].version
    )


def test_change_of_rules_changes_the_policy_only(admit_files: Any) -> None:
    files = {"a.yaml": entry("a", "10.0.0.1", labels="{app: x}"), "p.yaml": POLICY % ("x", 80)}
    first = admit_files(files)
    one = compute(first.objects, OPTIONS)
    two = compute(admit_files({**files, "p.yaml": POLICY % ("x", 81)}, first).objects, OPTIONS, one)
    assert _changed(one, two) == {TYPE_AUTHORIZATION: {"demo/p"}}


def test_nothing_changed_gives_the_same_versions_after_a_restart(admit_files: Any) -> None:
    files = {"a.yaml": entry("a", "10.0.0.1"), "p.yaml": POLICY % ("x", 80)}
    one = compute(admit_files(files).objects, OPTIONS)
    two = compute(admit_files(files).objects, OPTIONS)
    assert _changed(one, two) == {}


def test_identities_are_by_node(admit_files: Any) -> None:
    """What the CA signs for."""
    files = {
        "a.yaml": entry("a", "10.0.0.1", node="node1"),
        "b.yaml": entry("b", "10.0.0.2", node="node1"),
        "c.yaml": entry("c", "10.0.0.3", node="node2"),
        "d.yaml": entry("d", "10.0.0.4"),
    }
    assert compute(admit_files(files).objects, OPTIONS).identities == {
        "node1": {("demo", "a"), ("demo", "b")},
        "node2": {("demo", "c")},
    }


NETWORK_POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: n, namespace: demo}
spec: {podSelector: {matchLabels: {app: x}}}
"""


def test_network_policy_follows_its_workloads_to_their_nodes(admit_files: Any) -> None:
    files = {
        "a.yaml": entry("a", "10.0.0.1", labels="{app: x}", node="node1"),
        "n.yaml": NETWORK_POLICY,
    }
    first = admit_files(files)
    one = compute(first.objects, OPTIONS)
    assert one.snapshot.of_type(TYPE_NETWORK_POLICY)["demo/n"].nodes == {"node1"}
    files["a.yaml"] = entry("a", "10.0.0.1", labels="{app: x}", node="node2")
    two = compute(admit_files(files, first).objects, OPTIONS, one)
    assert two.snapshot.of_type(TYPE_NETWORK_POLICY)["demo/n"].nodes == {"node2"}
    assert TYPE_NETWORK_POLICY in _changed(one, two)


DOCUMENTS = [
    document
    for path in cases()
    if path.stem != "refused"
    for document in yaml.safe_load_all(path.read_text())
]


@given(st.lists(st.sets(st.integers(0, len(DOCUMENTS) - 1)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_incremental_result_equals_a_fresh_one(steps: list[set[int]]) -> None:
    """Over any sequence of stores; addresses of services are remembered on both sides."""
    accepted: dict[str, Any] = {}
    result: Computation | None = None
    for step in steps:
        files = {f"{n}.yaml": tuple(parse_object(DOCUMENTS[n], f"{n}.yaml")) for n in sorted(step)}
        accepted = dict(admit(Scan(files, {}), accepted, NOW).objects)
        vips = Computation(vips=result.vips) if result else None
        result = compute(accepted, OPTIONS, result)
        assert _changed(result, compute(accepted, OPTIONS, vips)) == {}


@given(st.lists(_objects(), max_size=4))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_parses_can_be_computed(documents: list[object]) -> None:
    """An object that passes the parser must not bring the control plane down."""
    found = tuple(item for data in documents for item in parse_object(data, "f"))
    compute(admit(Scan({"f": found}, {}), {}, NOW).objects, OPTIONS)
    assert all(isinstance(item, ParsedObject) or item.source == "f" for item in found)
