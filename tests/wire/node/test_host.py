"""A workload in the machine's own namespace: what is captured there, and what must never be."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.support.mesh_node import MeshNode, fetch, mesh_node, serving
from tests.support.waits import WAITS, wait_until

V4, V6 = "198.18.0.1", "fd18::1"
OUTSIDE = "198.18.0.2"
APP, SSH, EXCLUDED = 8080, 22, 9090
REPAIR_SECONDS = 5.0
SO_ORIGINAL_DST = 80


@pytest.fixture
def node():
    # root is not the proxy here: its connections are the machine's
    with mesh_node(ztunnel_group="nogroup") as made:
        yield made


def declare(node: MeshNode, **annotations: str) -> None:
    notes = {"ambient.metalmesh.io/netns": "host"}
    notes |= {f"ambient.metalmesh.io/{key}": value for key, value in annotations.items()}
    node.declare("web", V4, V6, annotations=notes)


def host(node: MeshNode, verb: str) -> str:
    done = node.command("netns", "--config", str(node.config_path), verb, "host")
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def original(peer: socket.socket) -> bytes:
    """The proxy's answer: where the client wanted to go."""
    try:
        raw = peer.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
    except OSError:
        return b"proxy"
    port, packed = struct.unpack_from("!2xH4s", raw)
    return f"proxy {socket.inet_ntoa(packed)}:{port}".encode()


@contextlib.contextmanager
def listening(node: MeshNode) -> Iterator[None]:
    """Applications on both sides, and in the place of the ztunnel something that names itself."""
    with contextlib.ExitStack() as stack:
        for place, name in ((node.netns, "machine"), (node.outside, "outside")):
            for port in (APP, SSH, EXCLUDED, 15012, 15020):
                stack.enter_context(
                    serving(
                        lambda p=place, n=port: p.do(
                            lambda: socket.create_server(
                                ("::", n), family=socket.AF_INET6, dualstack_ipv6=True
                            )
                        ),
                        lambda _peer, n=name: n.encode(),
                    )
                )
        for port in (15001, 15006):
            make = lambda n=port: node.netns.listen(n, address="")  # noqa: E731
            stack.enter_context(serving(make, original))
        stack.enter_context(
            serving(lambda: node.netns.listen(15008, address=""), lambda _peer: b"hbone")
        )
        yield


def seen(node: MeshNode) -> dict[str, str]:
    """Who answers, for every connection that matters."""
    return {
        "in": fetch(node.outside, V4, APP),
        "in hbone": fetch(node.outside, V4, 15008),
        "in ssh": fetch(node.outside, V4, SSH),
        "in excluded": fetch(node.outside, V4, EXCLUDED),
        "in metrics": fetch(node.outside, V4, 15020),
        "out": fetch(node.netns, OUTSIDE, APP),
        "out ssh": fetch(node.netns, OUTSIDE, SSH),
        "out control plane": fetch(node.netns, OUTSIDE, 15012),
        "out excluded": fetch(node.netns, OUTSIDE, EXCLUDED),
        "itself": fetch(node.netns, V4, APP),
        "loopback": fetch(node.netns, "127.0.0.1", APP),
    }


OPEN = {
    "in": "machine",
    "in hbone": "hbone",
    "in ssh": "machine",
    "in excluded": "machine",
    "in metrics": "machine",
    "out": "outside",
    "out ssh": "outside",
    "out control plane": "outside",
    "out excluded": "outside",
    "itself": "machine",
    "loopback": "machine",
}
CAPTURED = {**OPEN, "in": f"proxy {V4}:{APP}", "out": f"proxy {OUTSIDE}:{APP}"}


def test_capture_takes_the_workloads_traffic_and_nothing_that_keeps_the_machine_reachable(node):
    declare(
        node,
        **{"exclude-inbound-ports": str(EXCLUDED), "exclude-outbound-ports": f"{EXCLUDED}-9099"},
    )
    with listening(node):
        assert seen(node) == OPEN
        host(node, "up")
        assert seen(node) == CAPTURED
        assert fetch(node.outside, V6, SSH) == "machine"
        host(node, "down")
        assert seen(node) == OPEN


def test_virtual_addresses_are_captured_though_they_are_routed_to_the_loopback_link(node):
    """As the agent does; "to itself" is decided by address and not by link."""
    declare(node)
    host(node, "up")
    node.netns.run("ip", "route", "add", "10.96.0.0/16", "dev", "lo")
    with listening(node):
        assert fetch(node.netns, "10.96.0.10", APP) == f"proxy 10.96.0.10:{APP}"


def test_nothing_is_excluded_that_nobody_asked_for(node):
    declare(node)
    host(node, "up")
    with listening(node):
        found = seen(node)
    assert found == {
        **CAPTURED,
        "in excluded": f"proxy {V4}:{EXCLUDED}",
        "out excluded": f"proxy {OUTSIDE}:{EXCLUDED}",
    }


@pytest.mark.parametrize(
    ("setting", "excluded"),
    [
        ({"exclude_outbound_cidrs": "198.18.0.0/24"}, "out"),
        ({"exclude_inbound_ports": "8080"}, "in"),
    ],
)
def test_the_nodes_own_exclusions_hold_for_it_too(node, setting, excluded):
    node.configure(ztunnel_group="nogroup", **setting)
    declare(node)
    host(node, "up")
    with listening(node):
        assert seen(node)[excluded] == OPEN[excluded]


def test_ssh_listens_where_the_machine_says(node):
    node.configure(ztunnel_group="nogroup", ssh_ports=f"22,{APP}")
    declare(node)
    host(node, "up")
    with listening(node):
        found = seen(node)
    assert (found["in"], found["out"]) == ("machine", "outside")


def test_a_session_of_before_goes_on_though_the_kernel_forgets_it(node):
    """As after `conntrack -F`, or when the machine had no connection tracking before."""
    declare(node)
    listener = node.netns.listen(SSH, address="")
    client = node.outside.connect(V4, SSH)
    session, _ = listener.accept()
    with listener, client, session:
        host(node, "up")
        for sender, receiver in ((session, client), (client, session)) * 2:
            receiver.settimeout(5)
            sender.sendall(b"still here")
            assert receiver.recv(64) == b"still here"


def test_what_the_machine_forwards_for_others_is_not_its_own(node):
    """A workload in a netns, in the mesh or not, is neither client nor server of the host's."""
    declare(node)
    plain = node.declare("plain", "10.244.9.12", labels={"istio.io/dataplane-mode": "none"})
    node.know(plain)
    node.up("plain")
    host(node, "up")
    inside = node.workload("plain", "10.244.9.12")
    node.outside.run("ip", "route", "replace", "10.244.9.0/24", "via", V4)
    with listening(node), serving(lambda: inside.listen(APP), lambda _peer: b"plain"):
        assert fetch(node.outside, "10.244.9.12", APP) == "plain"
        assert fetch(inside, OUTSIDE, APP) == "outside"
        assert fetch(inside, V4, APP) == f"proxy {V4}:{APP}"  # a client like any other


def test_the_proxy_itself_is_not_captured(node):
    """By its mark, and where it has none by its group."""
    declare(node)
    host(node, "up")

    def marked() -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x539)
        sock.settimeout(5)
        sock.connect((OUTSIDE, APP))
        return sock

    with listening(node):
        with node.netns.do(marked) as sock:
            assert sock.recv(64) == b"outside"
        script = f"import socket; print(socket.create_connection(('{OUTSIDE}', {APP})).recv(9))"
        line = ["setpriv", "--regid", "nogroup", "--clear-groups", "python3", "-c", script]
        assert "outside" in node.netns.run(*line)


def test_routes_of_others_are_left_alone_and_a_clash_changes_nothing(node):
    declare(node)
    node.netns.run("ip", "rule", "add", "pref", "32764", "fwmark", "0x7", "lookup", "77")
    node.netns.run("ip", "route", "add", "198.51.100.0/24", "dev", "eth0", "table", "100")
    before = node.netns.run("nft", "list", "ruleset")
    with pytest.raises(RuntimeError, match=r"table 100 .* is used by somebody else"):
        host(node, "up")
    assert node.netns.run("nft", "list", "ruleset") == before
    assert node.state.records() == {}
    node.netns.run("ip", "route", "del", "198.51.100.0/24", "table", "100")
    host(node, "up")
    host(node, "down")
    assert "fwmark 0x7" in node.netns.run("ip", "rule")
    assert "0x111" not in node.netns.run("ip", "rule")
    assert node.netns.run("ip", "route", "show", "table", "100") == ""


@pytest.mark.parametrize(
    "command", [["nft", "flush", "ruleset"], ["ip", "rule", "del", "pref", "32764"]], ids=" ".join
)
def test_drift_is_repaired(node, command):
    declare(node)
    host(node, "up")
    node.start_agent()
    node.netns.run(*command)

    def whole() -> bool:
        return (
            "istio-ambient-host-nat" in node.netns.run("nft", "list", "tables")
            and "0x111" in node.netns.run("ip", "rule")
        )  # fmt: skip

    wait_until(whole, WAITS["drift"])
    with listening(node):
        assert seen(node)["in"] == f"proxy {V4}:{APP}"


def test_agent_gives_the_ztunnel_the_machines_namespace(node):
    from tests.wire.node.test_agent import ztunnel

    declare(node)
    host(node, "up")
    node.start_agent()
    with ztunnel(node) as fake:
        ((request, inode),) = fake.accept_snapshot()
    assert request.uid.endswith("/web")
    assert inode == node.netns.path.stat().st_ino


def test_a_second_one_is_refused_by_name(node):
    declare(node)
    node.declare("api", "198.18.0.9", annotations={"ambient.metalmesh.io/netns": "host"})
    done = node.command("netns", "--config", str(node.config_path), "up", "host")
    assert f"netns host belongs to workload {node.unique}/" in done.stderr
