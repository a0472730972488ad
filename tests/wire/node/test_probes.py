"""Health probes of the node reach the application itself, whatever PeerAuthentication says.

The redirection lets them pass by their source address, so no proxy is asked (istio-facts 1.6).
"""

from __future__ import annotations

import os
import socket

import pytest

from metalmesh.net.sockets import canonical
from tests.support.mesh_node import MeshNode, fetch, mesh_node, serving
from tests.support.waits import WAITS, wait_until

V4, V6 = "10.244.9.11", "fd44:9::11"
PROBE = {V4: "169.254.7.127", V6: "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"}
SOMEBODY = 65534
FAMILIES = pytest.mark.parametrize("address", [V4, V6], ids=["v4", "v6"])


@pytest.fixture(scope="module")
def node():
    """A captured workload without a proxy: only what passes capture reaches the application."""
    with mesh_node() as made:
        made.know(made.declare("w", V4, V6))
        made.up("w")
        made.start_agent()
        inside = made.workload("w")
        wait_until(lambda: V6 in _probe_sets(made), WAITS["workload"])
        with serving(lambda: inside.do(_listen), _application):
            yield made


def _probe_sets(node: MeshNode) -> str:
    return node.nft("list", "table", "inet", "istio-ambient-nat")


def _listen() -> socket.socket:
    return socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)


def _application(peer: socket.socket) -> bytes:
    return f"app saw {canonical(peer.getpeername()[0])}".encode()


@FAMILIES
def test_probe_of_the_agents_user_passes_capture(node, address):
    assert fetch(node.netns, address, 8080) == f"app saw {PROBE[address]}"


@FAMILIES
def test_another_user_of_the_node_is_captured_like_anybody(node, address):
    child = os.fork()
    if child == 0:
        status = 1
        try:

            def attempt() -> str:
                os.setuid(SOMEBODY)
                with socket.create_connection((address, 8080), 2) as sock:
                    return sock.recv(100).decode()

            node.netns.do(attempt)
        except ConnectionRefusedError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@FAMILIES
def test_traffic_from_elsewhere_is_captured(node, address):
    assert fetch(node.outside, address, 8080) == "ConnectionRefusedError"


def test_sets_hold_the_workload_with_its_uid_and_lose_it(node):
    text = _probe_sets(node)
    assert f'{V4} comment "Kubernetes/networking.istio.io/WorkloadEntry/{node.unique}/w"' in text
    node.declare("other", "10.244.9.12")
    node.up("other")
    wait_until(lambda: "10.244.9.12" in _probe_sets(node), WAITS["workload"])
    node.down("other")
    wait_until(lambda: "10.244.9.12" not in _probe_sets(node), WAITS["workload"])


def test_probe_passes_a_policy_that_admits_nobody(node):
    from ipaddress import ip_address

    from metalmesh.model.network_policy import CompiledNetworkPolicy, SelectedWorkload

    uid = f"Kubernetes/networking.istio.io/WorkloadEntry/{node.unique}/w"
    closed = CompiledNetworkPolicy(
        name="closed",
        namespace=node.unique,
        selected=(SelectedWorkload(uid, (ip_address(V4),)),),
        ingress=True,
        egress=True,
    )
    node.stop_agents()
    node.know(node.declare("w", V4, V6), policies=(closed,))
    node.up("w")
    assert "ingress refused by" in node.nft("list", "table", "inet", "metalmesh-policy")
    assert fetch(node.netns, V4, 8080) == f"app saw {PROBE[V4]}"
