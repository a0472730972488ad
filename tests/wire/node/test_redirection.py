"""Captured packets on a real kernel, with listeners in the place of the ztunnel.

Each promise has a twin that fails without the rule that keeps it (istio-facts 1.3, 1.4).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from metalmesh.net.sockets import (
    bind_source,
    canonical,
    make_listener,
    original_destination,
    upstream_socket,
)
from tests.support.mesh_node import MeshNode, fetch, mesh_node, serving

V4, V6 = "10.244.9.11", "fd44:9::11"
OUTSIDE = {V4: "198.18.0.2", V6: "fd18::2"}
APP_PORT = 8080
FAMILIES = pytest.mark.parametrize("address", [V4, V6], ids=["v4", "v6"])
RELAY_SECONDS = 1.0
#: the proxy gives up first, or the client does
LOST = {"", "TimeoutError"}


@pytest.fixture(scope="module")
def node():
    """A node with one captured workload behind proxies, and its application."""
    with mesh_node() as made, contextlib.ExitStack() as stack:
        made.know(made.declare("w", V4, V6))
        made.up("w")
        inside = made.workload("w")
        for port, answer in (
            (15001, _outbound),
            (15006, lambda peer: _plaintext(made, peer)),
            (15008, _hbone),
        ):
            stack.enter_context(serving(lambda port=port: _proxy(made, port), answer))
        stack.enter_context(serving(lambda: inside.do(lambda: _dual_stack(APP_PORT)), _application))
        yield made


def _proxy(node: MeshNode, port: int) -> socket.socket:
    listener = node.workload("w").do(lambda: make_listener(port))
    listener.settimeout(None)
    return listener


def _dual_stack(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def _application(peer: socket.socket) -> bytes:
    return f"app saw {canonical(peer.getpeername()[0])}".encode()


def _outbound(peer: socket.socket) -> bytes:
    address, port = original_destination(peer)
    return f"outbound to {address} {port}".encode()


def _hbone(peer: socket.socket) -> bytes:
    return f"hbone at {canonical(peer.getsockname()[0])}".encode()


def _plaintext(node: MeshNode, peer: socket.socket) -> bytes:
    """What an inbound proxy does: connect to the application from the client's address."""
    client = canonical(peer.getpeername()[0])
    address, port = original_destination(peer)

    def connect() -> socket.SocketType:
        upstream = upstream_socket(address)
        bind_source(upstream, client)
        upstream.settimeout(RELAY_SECONDS)
        upstream.connect((address, port))
        return upstream

    with contextlib.closing(node.workload("w").do(connect)) as upstream:
        reply = upstream.recv(4096)
    return f"plaintext for {address} {port}, ".encode() + reply


@FAMILIES
def test_outbound_reaches_the_proxy_with_its_destination(node, address):
    client = node.workload("w")
    assert fetch(client, OUTSIDE[address], 9000) == f"outbound to {OUTSIDE[address]} 9000"


@FAMILIES
def test_proxys_own_connection_leaves_with_the_workloads_address(node, address):
    target = OUTSIDE[address]
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with serving(
        lambda: node.outside.do(lambda: socket.create_server((target, 9001), family=family)),
        _application,
    ):

        def connect() -> str:
            with contextlib.closing(upstream_socket(target)) as upstream:
                upstream.settimeout(RELAY_SECONDS)
                upstream.connect((target, 9001))
                return upstream.recv(100).decode()

        assert node.workload("w").do(connect) == f"app saw {address}"


@FAMILIES
def test_plaintext_in_goes_by_the_proxy_and_the_application_sees_the_client(node, address):
    assert fetch(node.outside, address, APP_PORT) == (
        f"plaintext for {address} {APP_PORT}, app saw {OUTSIDE[address]}"
    )


@FAMILIES
def test_hbone_port_is_not_redirected(node, address):
    assert fetch(node.outside, address, 15008) == f"hbone at {address}"


@pytest.mark.parametrize("address", [V4, V6, "127.0.0.1", "::1"])
def test_traffic_to_itself_is_not_captured(node, address):
    assert fetch(node.workload("w"), address, APP_PORT).startswith("app saw ")


@FAMILIES
def test_without_rules_nothing_is_captured(node, address):
    """The negative twin of the tests above."""
    with _damaged(node, "nft", "delete", "table", "inet", "istio-ambient-nat"):
        assert fetch(node.outside, address, APP_PORT) == f"app saw {OUTSIDE[address]}"
        assert fetch(node.workload("w"), OUTSIDE[address], 9000) == "ConnectionRefusedError"


@FAMILIES
def test_without_the_ip_rule_the_applications_answer_is_lost(node, address):
    family = "-6" if ":" in address else "-4"
    with _damaged(node, "ip", family, "rule", "del", "priority", "32764"):
        assert fetch(node.outside, address, APP_PORT) in LOST


@FAMILIES
def test_restoring_the_mark_in_a_plain_filter_hook_is_not_enough(node, address):
    """Only a hook of type ``route`` sends the answer through routing once more."""
    table = node.nft("list", "table", "inet", "istio-ambient-mangle", inside="w")
    changed = table.replace("type route hook output", "type filter hook output")
    assert changed != table
    with _damaged(node, "nft", "delete", "table", "inet", "istio-ambient-mangle"):
        path = node.directory / "mangle.nft"
        path.write_text(changed)
        node.nft("-f", str(path), inside="w")
        assert fetch(node.outside, address, APP_PORT) in LOST


@contextlib.contextmanager
def _damaged(node: MeshNode, *command: str) -> Iterator[None]:
    node.workload("w").run(*command)
    try:
        yield
    finally:
        node.up("w")


@FAMILIES
def test_nobody_but_the_node_may_send_from_the_probes_address(node, address):
    """That address passes capture, so a packet that brings it along is dropped."""
    source = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff" if ":" in address else "169.254.7.127"
    length, nodad = ("128", ["nodad"]) if ":" in address else ("32", [])
    node.outside.run("ip", "addr", "add", f"{source}/{length}", "dev", "eth0", *nodad)
    try:

        def connect() -> str:
            try:
                socket.create_connection((address, APP_PORT), 1.0, (source, 0)).close()
            except OSError as error:
                return type(error).__name__
            return "connected"

        assert node.outside.do(connect) == "TimeoutError"
        rule = next(
            line
            for line in node.nft(
                "list", "chain", "inet", "metalmesh-policy", "prerouting"
            ).splitlines()
            if source in line
        )
        assert "packets 0 " not in rule
    finally:
        node.outside.run("ip", "addr", "del", f"{source}/{length}", "dev", "eth0")


def test_bypass_annotation_lets_plaintext_in_and_still_captures_outbound(node):
    node.know(
        node.declare("w", V4, V6, annotations={"ambient.istio.io/bypass-inbound-capture": "true"})
    )
    try:
        node.up("w")
        assert fetch(node.outside, V4, APP_PORT) == f"app saw {OUTSIDE[V4]}"
        assert fetch(node.workload("w"), OUTSIDE[V4], 9000).startswith("outbound")
        assert fetch(node.outside, V4, 15008) == f"hbone at {V4}"
    finally:
        node.declare("w", V4, V6)
        node.up("w")


def test_without_a_proxy_connections_are_refused_not_let_through():
    with mesh_node() as node:
        node.know(node.declare("w", V4))
        node.up("w")
        inside = node.workload("w")
        with serving(lambda: inside.do(lambda: _dual_stack(APP_PORT)), _application):
            assert fetch(node.outside, V4, APP_PORT) == "ConnectionRefusedError"
            assert fetch(inside, OUTSIDE[V4], 9000) == "ConnectionRefusedError"


EXCLUDING = {
    "ambient.metalmesh.io/exclude-inbound-ports": f"{APP_PORT}-{APP_PORT + 10}",
    "ambient.metalmesh.io/exclude-outbound-ports": "7000",
    "ambient.metalmesh.io/exclude-outbound-cidrs": "198.18.0.0/24,fd18::/64",
}


@FAMILIES
@pytest.mark.parametrize("annotations", [{}, EXCLUDING], ids=["captured", "excluded"])
def test_what_is_excluded_is_not_captured(annotations, address):
    """Without the annotations the proxy answers, in both directions."""
    other = "198.18.0.2" if address == V4 else "fd18::2"
    with mesh_node() as node, contextlib.ExitStack() as stack:
        node.know(node.declare("w", V4, V6, annotations=annotations))
        node.up("w")
        inside = node.workload("w", address)
        for port in (15001, 15006):
            stack.enter_context(serving(lambda p=port: _proxy(node, p), lambda _peer: b"proxy"))
        for place in (inside, node.outside):
            make = lambda where=place: where.do(lambda: _dual_stack(APP_PORT))  # noqa: E731
            stack.enter_context(serving(make, lambda _peer: b"app"))
        seen = fetch(node.outside, address, APP_PORT), fetch(inside, other, APP_PORT)
    assert seen == (("app", "app") if annotations else ("proxy", "proxy"))
