"""AuthorizationPolicy at the destination's ztunnel: by principal and by port, ALLOW and DENY."""

from __future__ import annotations

import pytest

from tests.lab.cast import APP_PORT, NAMESPACE, OTHER_PORT, Cast
from tests.lab.policies import authorization, from_workload, to_port
from tests.support.apps import LongConnection, ask
from tests.support.mesh import Mesh, Workload
from tests.support.waits import WAITS, wait_until

Matrix = dict[tuple[str, int], bool]
CLIENT, PEER = "client", "peer"
CASES: list[tuple[str, str, str, Matrix]] = [
    ("allow principal", "ALLOW", "principal", {(CLIENT, APP_PORT): True, (PEER, APP_PORT): False}),
    ("deny principal", "DENY", "principal", {(CLIENT, APP_PORT): False, (PEER, APP_PORT): True}),
    ("allow port", "ALLOW", "port", {(CLIENT, APP_PORT): True, (CLIENT, OTHER_PORT): False}),
    ("deny port", "DENY", "port", {(CLIENT, APP_PORT): False, (CLIENT, OTHER_PORT): True}),
    ("allow nothing", "ALLOW", "none", {(CLIENT, APP_PORT): False, (PEER, OTHER_PORT): False}),
]


@pytest.mark.parametrize(
    ("action", "match", "matrix"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_policy_decides(mesh: Mesh, cast: Cast, action: str, match: str, matrix: Matrix) -> None:
    """Every pair is served before, decided by the policy meanwhile, and served after."""
    rules = {"principal": [from_workload(cast.client)], "port": [to_port(APP_PORT)], "none": []}
    callers: dict[str, Workload] = {CLIENT: cast.client, PEER: cast.peer}

    def served() -> Matrix:
        return {
            (name, port): ask(callers[name].netns, cast.server.address, port, b"x") == b"x"
            for name, port in matrix
        }

    assert all(served().values())
    log = mesh.access_log(cast.server.node)
    with mesh.applied(authorization(action, *rules[match])):
        wait_until(lambda: served() == matrix, WAITS["policy"], what=f"{matrix}")
        assert served() == matrix
        reason = (
            f"explicitly denied by: {NAMESPACE}/gate"
            if action == "DENY"
            else "allow policies exist, but none allowed"
        )
        log.wait("connection closed due to policy rejection", reason)
    wait_until(lambda: all(served().values()), WAITS["policy"], what="everything served again")


def test_refused_client_learns_the_status(mesh: Mesh, cast: Cast) -> None:
    """The client's ztunnel logs what the server's answered: 401, not 403 (facts 2.2)."""
    with mesh.applied(authorization("DENY", from_workload(cast.client))):
        wait_until(
            lambda: ask(cast.client.netns, cast.server.address, APP_PORT, b"x") == b"",
            WAITS["policy"],
            what="denied",
        )
        log = mesh.access_log(cast.client.node)
        assert ask(cast.client.netns, cast.server.address, APP_PORT, b"x") == b""
        log.wait('direction="outbound"', "http status: 401 Unauthorized")


def test_open_connection_is_closed_when_a_policy_forbids_it(mesh: Mesh, cast: Cast) -> None:
    """A policy holds for connections that are open already; others stay (facts 5.6)."""
    address = cast.server.address
    with (
        LongConnection(cast.client.netns, address, APP_PORT) as denied,
        LongConnection(cast.peer.netns, address, APP_PORT) as allowed,
    ):
        assert denied.echo(b"before") == b"before"
        assert allowed.echo(b"before") == b"before"
        log = mesh.access_log(cast.server.node)
        with mesh.applied(authorization("DENY", from_workload(cast.client))):
            assert denied.wait_closed()
            log.wait("connection closed due to policy change")
            assert allowed.echo(b"still here") == b"still here"
