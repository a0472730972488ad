"""What nodes say of their workloads' health, and how far it reaches."""

from __future__ import annotations

import threading

import grpc
import pytest

from metalmesh.constants import TYPE_ADDRESS
from metalmesh.model.workload import Workload
from metalmesh.proto import node_pb2
from metalmesh.xds.wds import decode_address
from tests.support.waits import wait_until
from tests.unit.controlplane.conftest import entry
from tests.wire.controlplane.plane import CHANGE, RPC_SECONDS, Client, Plane

UID = "Kubernetes/networking.istio.io/WorkloadEntry/demo/"
METHOD = "/metalmesh.node.v1.NodeService/ReportHealth"


def report(client: Client, *uids: str, wait: bool = False) -> bool:
    """Say that these workloads are not well."""
    call = client.channel.unary_unary(
        METHOD,
        request_serializer=node_pb2.HealthReport.SerializeToString,
        response_deserializer=node_pb2.HealthReply.FromString,
    )
    items = [node_pb2.Unhealthy(uid=uid, reason="test") for uid in uids]
    request = node_pb2.HealthReport(unhealthy=items, wait=wait)
    return bool(call(request, timeout=RPC_SECONDS, metadata=client.metadata).settled)


def health(client: Client) -> dict[str, bool]:
    """Health of every workload, as a client is told."""
    stream = client.stream()
    stream.ask(TYPE_ADDRESS)
    found = {}
    for item in stream.take().resources:
        decoded = decode_address(item.resource.value, item.name)
        assert isinstance(decoded, Workload)
        found[decoded.name] = decoded.healthy
    stream.close()
    return found


def test_node_speaks_for_its_own_workloads_only(plane: Plane) -> None:
    plane.put("x.yaml", entry("x", "10.0.0.8", node="node1"))
    plane.put("y.yaml", entry("y", "10.0.0.9", node="node2"))
    one, two = plane.client("node1"), plane.client("node2")
    wait_until(lambda: {"x", "y"} <= health(one).keys(), CHANGE)
    report(one, UID + "x", UID + "y")
    assert {name: health(one)[name] for name in "xy"} == {"x": False, "y": True}
    report(two, UID + "x")
    report(one)
    assert all(health(one).values()), "node2 has no say about x"
    stranger = plane.client()
    with pytest.raises(grpc.RpcError) as caught:
        report(stranger, UID + "x")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert all(health(one).values())


def test_report_waits_until_every_client_has_confirmed(plane: Plane) -> None:
    plane.put("x.yaml", entry("x", "10.0.0.8", node="node1"))
    node = plane.client("node1")
    wait_until(lambda: "x" in health(node), CHANGE)
    stream = plane.client("node2").stream()
    stream.ask(TYPE_ADDRESS)
    stream.take()
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(report(node, UID + "x", wait=True)))
    asking.start()
    response = stream.next()
    assert answers == [], "the change was sent and is not confirmed"
    stream.ask(TYPE_ADDRESS, response_nonce=response.nonce)
    asking.join(RPC_SECONDS)
    assert answers == [True]
    stream.close()
