"""Delta ADS over gRPC and TLS: what a ztunnel needs of an istiod (istio-facts 3 and 14)."""

from __future__ import annotations

import asyncio
import queue
import time
from typing import Any

import grpc
import pytest

from metalmesh.constants import (
    TYPE_ADDRESS,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
    TYPE_NODE,
)
from metalmesh.proto import authorization_pb2, workload_pb2
from metalmesh.service.channel import ControlPlane
from metalmesh.service.metrics import Registry
from metalmesh.service.xds_client import XdsClient, XdsMetrics
from metalmesh.xds.delta_client import DeltaClient, NodeInfo, Subscription, Update
from metalmesh.xds.wds import decode_address
from tests.support.waits import wait_until
from tests.unit.controlplane.conftest import entry
from tests.wire.controlplane.plane import CHANGE, Plane, Stream

UID = "Kubernetes/networking.istio.io/WorkloadEntry/demo/"
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: demo}
spec: {selector: {matchLabels: {app: a}}, rules: [{from: [{source: {namespaces: [%s]}}]}]}
"""
NETWORK_POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: n, namespace: demo}
spec: {podSelector: {matchLabels: {app: a}}}
"""


def _names(response: Any) -> set[str]:
    return {item.name for item in response.resources}


def test_first_requests_are_answered_with_everything_or_with_nothing(plane: Plane) -> None:
    stream = plane.client("node1").stream()
    stream.ask(TYPE_ADDRESS)
    stream.ask(TYPE_AUTHORIZATION)
    first, second = stream.take(), stream.take()
    assert (first.type_url, _names(first)) == (TYPE_ADDRESS, {UID + "a", UID + "b"})
    assert (second.type_url, _names(second)) == (TYPE_AUTHORIZATION, set())
    workload = workload_pb2.Address.FromString(first.resources[0].resource.value).workload
    assert (workload.name, workload.namespace, workload.service_account, workload.node) == (
        "a",
        "demo",
        "a",
        "node1",
    )
    assert workload.trust_domain == "cluster.local"
    stream.close()


def test_policy_is_served_within_a_second_and_before_its_workload(plane: Plane) -> None:
    stream = plane.client("node1").stream()
    for type_url in (TYPE_ADDRESS, TYPE_AUTHORIZATION):
        stream.ask(type_url)
        stream.take()
    started = time.monotonic()
    plane.put("p.yaml", POLICY % "x")
    policy, workload = stream.take(), stream.take()
    assert time.monotonic() - started < 1.0
    assert (policy.type_url, _names(policy)) == (TYPE_AUTHORIZATION, {"demo/p"})
    assert _names(workload) == {UID + "a"}
    message = authorization_pb2.Authorization.FromString(policy.resources[0].resource.value)
    assert message.rules[0].clauses[0].matches[0].namespaces[0].exact == "x"
    (plane.store / "p.yaml").unlink()
    gone, _ = stream.take(), stream.take()
    assert list(gone.removed_resources) == ["demo/p"]
    stream.close()


def test_restart_sends_only_what_changed_meanwhile(plane: Plane) -> None:
    """Versions are hashes: a new process gives equal content equal versions."""
    client = plane.client("node1")
    stream = client.stream()
    stream.ask(TYPE_ADDRESS)
    versions = {item.name: item.version for item in stream.take().resources}
    stream.close()
    client.close()
    assert plane.stop() == 0
    plane.put("b.yaml", entry("b", "10.0.0.22", node="node2"))
    plane.start()
    again = plane.client()
    again.token = client.token  # the node's token outlives the restart
    stream = again.stream()
    stream.ask(TYPE_ADDRESS, versions={**versions, "gone": "1"})
    response = stream.take()
    assert _names(response) == {UID + "b"}
    assert list(response.removed_resources) == ["gone"]
    stream.close()


def test_network_policies_go_to_the_nodes_of_their_workloads_only(plane: Plane) -> None:
    plane.put("n.yaml", NETWORK_POLICY)
    wait_until(lambda: "demo/n" in plane.get("/debug/resources"), CHANGE)
    found = {}
    for node in ("node1", "node2"):
        stream = plane.client(node).stream()
        stream.ask(TYPE_NETWORK_POLICY)
        found[node] = _names(stream.take())
        stream.close()
    assert found == {"node1": {"demo/n"}, "node2": set()}


def test_nodes_are_served(plane: Plane) -> None:
    plane.put("node.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n")
    stream = plane.client("node1").stream()
    stream.ask(TYPE_NODE)
    names = _names(stream.take())
    assert names == {"node1"} or _names(stream.take()) == {"node1"}
    stream.close()


def test_on_demand_by_address(plane: Plane) -> None:
    stream = plane.client("node1").stream()
    stream.ask(TYPE_ADDRESS, resource_names_subscribe=["*"], resource_names_unsubscribe=["*"])
    stream.ask(TYPE_ADDRESS, resource_names_subscribe=["/10.0.0.2", "/10.9.9.9"])
    response = stream.take()
    assert _names(response) == {UID + "b"}
    assert list(response.resources[0].aliases) == ["/10.0.0.2"]
    assert list(response.removed_resources) == ["/10.9.9.9"]
    stream.close()


def test_refusal_of_a_client_is_logged_counted_and_shown(plane: Plane) -> None:
    stream = plane.client("node1").stream()
    stream.ask(TYPE_ADDRESS)
    response = stream.next()
    stream.ask(TYPE_ADDRESS, response_nonce=response.nonce, error="x: I do not like it")
    (line,) = wait_until(lambda: plane.logged("client refused resources"), CHANGE)
    assert (line["node"], line["error"]) == ("node1", "x: I do not like it")
    sample = f'metalmesh_controlplane_xds_nacks_total{{type_url="{TYPE_ADDRESS}"}}'
    assert plane.metric(sample) == 1
    assert "I do not like it" in plane.get("/debug/syncz")
    assert plane.metric('pilot_xds{kind="ztunnel"}') == 1
    stream.close()


def test_slow_client_gets_the_newest_content_once(plane: Plane) -> None:
    """Forty changes while an answer is awaited are one response afterwards."""
    stream = plane.client("node1").stream()
    stream.ask(TYPE_ADDRESS)
    response = stream.next()
    for number in range(40):
        plane.put("b.yaml", entry("b", f"10.0.1.{number + 1}", node="node2"))
        wait_until(lambda n=number: f'"10.0.1.{n + 1}"' in _saved(plane), CHANGE)
    with pytest.raises(queue.Empty):
        stream.next(0.05)
    stream.ask(TYPE_ADDRESS, response_nonce=response.nonce)
    latest = stream.take()
    (item,) = latest.resources
    workload = decode_address(item.resource.value, item.name)
    assert str(workload.addresses[0]) == "10.0.1.40"
    stream.close()


def _saved(plane: Plane) -> str:
    return (plane.directory / "state" / "accepted.json").read_text()


@pytest.mark.parametrize("token", ["", "garbage", "a.b.c"])
def test_stream_without_a_valid_token_is_refused(plane: Plane, token: str) -> None:
    client = plane.client()
    client.token = token
    stream = client.stream()
    stream.ask(TYPE_ADDRESS)
    with pytest.raises(grpc.RpcError) as caught:
        stream.next()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.details() == "request authenticate failure"
    assert plane.logged("authentication refused")
    assert plane.metric("metalmesh_controlplane_authentication_failures_total") == 1
    stream.close()


def test_request_that_breaks_the_protocol_ends_its_stream_only(plane: Plane) -> None:
    client = plane.client("node1")
    good, bad = client.stream(), client.stream()
    bad.ask("")
    with pytest.raises(grpc.RpcError) as caught:
        bad.next()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    good.ask(TYPE_ADDRESS)
    assert good.take().resources
    good.close()


def test_many_streams_share_one_connection_and_all_hear_of_a_change(plane: Plane) -> None:
    client = plane.client("node1")
    streams = [client.stream() for _ in range(20)]
    for stream in streams:
        stream.ask(TYPE_AUTHORIZATION)
        stream.take()
    plane.put("p.yaml", POLICY % "x")
    for stream in streams:
        assert _names(stream.take()) == {"demo/p"}
        stream.close()
    wait_until(lambda: plane.get("/debug/syncz") == "[]\n", CHANGE)


def test_our_own_client_follows_it(plane: Plane) -> None:
    """The shell that ztunnel and node agent use, against the real server."""
    token = plane.directory / "token"
    token.write_text(plane.client("node1").token)
    held: dict[str, Any] = {}

    def update(change: Update) -> None:
        held.update(change.changed)
        for name in change.removed:
            held.pop(name, None)

    state = DeltaClient(
        NodeInfo("ztunnel~1.1.1.1~z.ns~d"),
        [Subscription(type_url=TYPE_ADDRESS, decode=decode_address)],
        update,
    )
    where = ControlPlane(
        address=f"localhost:{plane.port}",
        root_cert_path=str(plane.directory / "ca" / "root-cert.pem"),
        token_path=str(token),
        cluster_id="Kubernetes",
    )

    async def follow() -> None:
        client = XdsClient(where, state, XdsMetrics(Registry()))
        task = asyncio.create_task(client.run())
        await _eventually(lambda: set(held) == {UID + "a", UID + "b"})
        (plane.store / "b.yaml").unlink()
        await _eventually(lambda: set(held) == {UID + "a"})
        task.cancel()

    asyncio.run(follow())


async def _eventually(predicate: Any) -> None:
    async with asyncio.timeout(CHANGE.seconds):
        while not predicate():
            await asyncio.sleep(0.01)


def test_stream_type_is_reported_for_people(plane: Plane) -> None:
    stream: Stream = plane.client("node1").stream()
    stream.ask(TYPE_ADDRESS)
    stream.take()
    found = wait_until(
        lambda: plane.get("/debug/syncz") if '"acked": 1' in plane.get("/debug/syncz") else "",
        CHANGE,
    )
    assert '"client": "ztunnel~1.1.1.1~z.ns~d"' in found
    stream.close()


def test_principals_of_policies_are_served_in_every_trust_domain(plane: Plane) -> None:
    """Istio's trustDomainAliases: who is named in one is meant in all of them."""
    plane.stop()
    plane.settings["trust_domain_aliases"] = ["old.example"]
    plane.start()
    plane.put("p.yaml", POLICY.replace("namespaces: [%s]", "principals: [old.example/ns/x/sa/y]"))
    stream = plane.client("node1").stream()
    stream.ask(TYPE_AUTHORIZATION)
    served = stream.take()
    if not served.resources:  # the file was not read yet
        served = stream.take()
    message = authorization_pb2.Authorization.FromString(served.resources[0].resource.value)
    found = [item.exact for item in message.rules[0].clauses[0].matches[0].principals]
    assert found == ["cluster.local/ns/x/sa/y", "old.example/ns/x/sa/y"]
    stream.close()
