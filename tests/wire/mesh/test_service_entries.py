"""ServiceEntries from the store to the wire, and where endpoints are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.support.apps import ask, echo_app, new_marker
from tests.support.bare import bare_workload, settle
from tests.support.mesh import ZTUNNEL, Resource
from tests.support.waits import WAITS, wait_until
from tests.wire.mesh.conftest import PORT, Stage


def service_entry(stage: Stage, name: str, **spec: Any) -> Resource:
    """A ServiceEntry in the clients' namespace, with one port of the name ``http``."""
    port = {"number": 80, "name": "http", "protocol": "TCP", "targetPort": PORT}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": stage.client.namespace},
        "spec": {"hosts": [f"{name}.internal"], "ports": [port], **spec},
    }


def allocated(stage: Stage, name: str) -> str:
    """The IPv4 address the control plane chose for a ServiceEntry's host."""
    path = stage.mesh.control_plane.path("/var/state/service-addresses.json")
    key = f"ServiceEntry {stage.client.namespace}/{name} {name}.internal"

    def found() -> str:
        known: Mapping[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
        return next((text for text in known.get(key, []) if ":" not in text), "")

    return wait_until(found, WAITS["policy"], what=f"an address for {key}")


def reached(stage: Stage, address: str, port: int) -> bool:
    marker = new_marker()
    return ask(stage.client.netns, address, port, marker) == marker


def test_selected_workloads_are_reached_at_an_allocated_address(stage: Stage) -> None:
    """Through the tunnel; without the object there is nothing at that address."""
    selector = {"labels": {"app": stage.server.name}}
    entry = service_entry(
        stage, "chosen", resolution="STATIC", location="MESH_INTERNAL", workloadSelector=selector
    )
    log = stage.mesh.access_log(stage.client.node)
    with stage.mesh.applied(entry):
        address = allocated(stage, "chosen")
        assert address.startswith("240.240.")
        settle(lambda: reached(stage, address, 80), "the ServiceEntry in force")
        line = log.wait("connection complete", 'dst.service="chosen.internal"', "bytes_recv=39")
        assert f"dst.hbone_addr={stage.server.address}:{PORT}" in line
        assert f'dst.identity="{stage.server.identity}"' in line
    settle(lambda: not reached(stage, address, 80), "the ServiceEntry gone")


def test_inline_endpoint_outside_of_the_mesh_has_its_own_port(stage: Stage) -> None:
    (outside,) = stage.mesh.external
    endpoint = {"address": outside.address, "ports": {"http": PORT + 1}}
    entry = service_entry(
        stage, "inline", resolution="STATIC", addresses=["198.51.100.9"], endpoints=[endpoint]
    )
    log = stage.mesh.access_log(stage.client.node)
    with stage.mesh.applied(entry), echo_app(outside.netns, PORT + 1):
        settle(lambda: reached(stage, "198.51.100.9", 80), "the ServiceEntry in force")
        line = log.wait("connection complete", 'dst.service="inline.internal"', "bytes_recv=39")
        assert f"dst.addr={outside.address}:{PORT + 1} " in line
        assert "dst.identity" not in line


def test_resolution_none_goes_where_the_client_wanted_but_not_around_the_mesh(
    stage: Stage,
) -> None:
    """A range that holds everybody: the outside is passed through, a workload keeps its tunnel."""
    (outside,) = stage.mesh.external
    ports = [{"number": PORT, "name": "tcp"}]
    entry = service_entry(stage, "range", addresses=["198.18.0.0/15"], ports=ports)
    log = stage.mesh.access_log(stage.client.node)
    with stage.mesh.applied(entry), echo_app(outside.netns, PORT):

        def named() -> bool:
            reached(stage, outside.address, PORT)
            return any('dst.service="range.internal"' in line for line in log.lines())

        settle(named, "the ServiceEntry in force")
        line = log.wait("connection complete", 'dst.service="range.internal"', "bytes_recv=39")
        assert f"dst.addr={outside.address}:{PORT} " in line
        assert reached(stage, stage.server.address, PORT)
        log.wait("connection complete", f"dst.hbone_addr={stage.server.address}:{PORT}")


def test_younger_of_two_with_one_host_is_told(stage: Stage) -> None:
    one = service_entry(stage, "older", resolution="STATIC", hosts=["twice.internal"])
    two = service_entry(stage, "younger", resolution="STATIC", hosts=["twice.internal"])
    for age, item in enumerate((one, two)):
        item["metadata"]["creationTimestamp"] = f"2026-01-0{age + 1}T00:00:00Z"

    def reason() -> str:
        objects = json.loads(stage.mesh.control_plane.get(15014, "/debug/resources"))["objects"]
        (found,) = (item for item in objects if item["object"].endswith("/younger"))
        return str(found["conditions"][0]["reason"])

    with stage.mesh.applied(two, one):
        settle(lambda: _quietly(reason) == "HostConflict", "the condition")


def _quietly(question: Any) -> str:
    """The answer; none while the object is not there yet."""
    try:
        return str(question())
    except (ValueError, IndexError):
        return ""


def test_endpoints_of_the_own_zone_are_preferred_while_there_are_any(stage: Stage) -> None:
    """Zones are the nodes', which hand them on to their workloads; two nodes, one Service."""
    near = bare_workload(stage.mesh, "n1", 20, "near")
    far = bare_workload(stage.mesh, "n2", 20, "far")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "zoned", "namespace": near.namespace},
        "spec": {
            "clusterIP": "10.96.7.7",
            "selector": {"tier": "zoned"},
            "trafficDistribution": "PreferClose",
            "ports": [{"port": 80, "targetPort": PORT}],
        },
    }
    near.labels["tier"] = far.labels["tier"] = "zoned"  # type: ignore[index]
    log = stage.mesh.machines["n1"].journal(ZTUNNEL)
    with stage.mesh.applied(service):
        try:
            for workload in (far, near):
                stage.mesh.add_workload(workload)
            with echo_app(near.netns, PORT) as nearby, echo_app(far.netns, PORT) as distant:
                settle(lambda: reached(stage, "10.96.7.7", 80) and nearby.callers, "near")
                distant.callers.clear()
                assert all(reached(stage, "10.96.7.7", 80) for _ in range(12))
                assert distant.callers == []
                stage.mesh.remove_workload(near)
                settle(lambda: reached(stage, "10.96.7.7", 80) and distant.callers, "far")
        finally:
            for workload in (near, far):
                stage.mesh.remove_workload(workload)
    log.wait("connection complete", 'dst.service="zoned.', 'dst.workload="far"')


def test_local_traffic_policy_never_leaves_the_node(stage: Stage) -> None:
    """The only endpoint is elsewhere: refused, and not passed through."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "local", "namespace": stage.client.namespace},
        "spec": {
            "clusterIP": "10.96.7.8",
            "selector": {"app": stage.server.name},
            "internalTrafficPolicy": "Local",
            "ports": [{"port": 80, "targetPort": PORT}],
        },
    }
    log = stage.mesh.access_log(stage.client.node)

    def told() -> bool:
        assert not reached(stage, "10.96.7.8", 80)
        return any("no healthy upstream: 10.96.7.8:80" in line for line in log.lines())

    with stage.mesh.applied(service):
        settle(told, "no healthy upstream")
