"""Kubernetes NetworkPolicy: on the wire it sees only 15008; inside HBONE it holds again."""

from __future__ import annotations

from metalmesh.constants import PORT_HBONE
from tests.lab.cast import APP_PORT, NAMESPACE, OTHER_PORT, Cast
from tests.lab.policies import network_policy, ports
from tests.support.apps import ask
from tests.support.mesh import Mesh
from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until

WIRE_LOG = "maybe a NetworkPolicy is blocking HBONE port 15008"


def in_force(mesh: Mesh, cast: Cast, *admitted: int) -> None:
    """Wait until the server's node enforces exactly these ports against plaintext."""
    (outside, *_) = mesh.external

    def enforced() -> bool:
        return all(
            _connects(outside.netns, cast.server.address, port)
            == (not admitted or port in admitted)
            for port in (APP_PORT, OTHER_PORT, PORT_HBONE)
        )

    wait_until(enforced, WAITS["policy"], what=f"NetworkPolicy {admitted or 'removed'} in force")


def _connects(netns: Netns, address: str, port: int) -> bool:
    try:
        netns.connect(address, port, timeout_seconds=0.3).close()
    except (TimeoutError, ConnectionError):
        return False
    return True


def test_policy_without_15008_blocks_the_mesh_and_15008_restores_it(mesh: Mesh, cast: Cast) -> None:
    """The trap every ambient user falls into, with the log line that names it (issue: Proof).

    Then: other inner ports stay closed although the wire shows nothing but 15008 (DESIGN 3).
    """
    client, server = cast.client, cast.server
    (outside, *_) = mesh.external
    assert ask(client.netns, server.address, OTHER_PORT, b"open") == b"open"
    with mesh.applied(network_policy(ports(APP_PORT))):
        in_force(mesh, cast, APP_PORT)
        mesh.drop_tunnels(client)
        log = mesh.access_log(client.node)
        assert ask(client.netns, server.address, APP_PORT, b"blocked") == b""
        log.wait(WIRE_LOG, f"dst.hbone_addr={server.address}:{APP_PORT}")
        assert ask(outside.netns, server.address, APP_PORT, b"plain") == b"plain"

        mesh.apply(network_policy(ports(APP_PORT, PORT_HBONE)))
        in_force(mesh, cast, APP_PORT, PORT_HBONE)
        assert ask(client.netns, server.address, APP_PORT, b"restored") == b"restored"
        log = mesh.access_log(server.node)
        assert ask(client.netns, server.address, OTHER_PORT, b"inner") == b""
        log.wait(f"{NAMESPACE}/server", f"dst.hbone_addr={server.address}:{OTHER_PORT}")
    in_force(mesh, cast)
    assert ask(client.netns, server.address, OTHER_PORT, b"open") == b"open"


def test_policy_by_peer_holds_inside_hbone(mesh: Mesh, cast: Cast) -> None:
    """A rule that names its peers: 15008 is open to all, the app port to the client only."""
    only_client = {"podSelector": {"matchLabels": {"app": "client"}}}
    rules = network_policy(ports(PORT_HBONE), ports(APP_PORT, only_from=only_client))
    address = cast.server.address
    with mesh.applied(rules):
        wait_until(
            lambda: ask(cast.peer.netns, address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="the other peer refused",
        )
        assert ask(cast.client.netns, address, APP_PORT, b"named") == b"named"
    wait_until(
        lambda: ask(cast.peer.netns, address, APP_PORT, b"x") == b"x",
        WAITS["policy"],
        what="the other peer served again",
    )
