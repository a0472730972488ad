"""Plaintext from outside of the mesh: served when PERMISSIVE, refused when STRICT."""

from __future__ import annotations

from metalmesh.constants import STRICT_POLICY_NAME
from tests.lab.cast import APP_PORT, OTHER_PORT, Cast
from tests.lab.policies import peer_authentication
from tests.support.apps import ask, new_marker
from tests.support.mesh import Mesh
from tests.support.waits import WAITS, wait_until


def test_permissive_serves_plaintext_and_keeps_its_source(mesh: Mesh, cast: Cast) -> None:
    """Without a PeerAuthentication a client outside of the mesh is served."""
    (outside, *_) = mesh.external
    log = mesh.access_log(cast.server.node)
    seen = cast.callers["server"]
    del seen[:]
    marker = new_marker()
    assert ask(outside.netns, cast.server.address, APP_PORT, marker) == marker
    assert seen == [outside.address]
    line = log.wait("connection complete", f"src.addr={outside.address}:")
    assert "src.identity" not in line
    assert 'direction="inbound"' in line


def test_strict_refuses_plaintext_and_serves_the_mesh(mesh: Mesh, cast: Cast) -> None:
    """STRICT: no identity, no service; who is in the mesh does not notice."""
    (outside, *_) = mesh.external
    address = cast.server.address
    with mesh.applied(peer_authentication("STRICT")):
        wait_until(
            lambda: ask(outside.netns, address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="plaintext refused",
        )
        log = mesh.access_log(cast.server.node)
        del cast.callers["server"][:]
        assert ask(outside.netns, address, APP_PORT, b"x") == b""
        assert ask(cast.plain.netns, address, APP_PORT, b"x") == b""
        assert cast.callers["server"] == []
        log.wait(
            f"src.addr={outside.address}:",
            f"explicitly denied by: istio-system/{STRICT_POLICY_NAME}",
        )
        assert ask(cast.client.netns, address, APP_PORT, b"in the mesh") == b"in the mesh"
    wait_until(
        lambda: ask(outside.netns, address, APP_PORT, b"x") == b"x",
        WAITS["policy"],
        what="plaintext served again",
    )


def test_strict_with_a_permissive_port_opens_that_port_only(mesh: Mesh, cast: Cast) -> None:
    """portLevelMtls is an exception of one port (facts 5.7)."""
    (outside, *_) = mesh.external
    address = cast.server.address
    with mesh.applied(peer_authentication("STRICT", port_modes={OTHER_PORT: "PERMISSIVE"})):
        wait_until(
            lambda: ask(outside.netns, address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="the app port refused",
        )
        assert ask(outside.netns, address, OTHER_PORT, b"exception") == b"exception"
