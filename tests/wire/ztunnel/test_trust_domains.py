"""Peers whose certificates carry another trust domain: an alias of ours, or a foreign one."""

from __future__ import annotations

import contextlib
import socket
import ssl

import pytest

from metalmesh.constants import PORT_HBONE
from tests.support.apps import ask, echo_app
from tests.support.data_worker import dial_uncaptured
from tests.support.peers import HboneClient, HboneServer
from tests.support.ztunnel_stage import Guest, Stage

pytestmark = pytest.mark.root
PORT = 8080
ALIAS = "spiffe://old.example/ns/shop/sa"
FOREIGN = "spiffe://foreign.example/ns/shop/sa"


@pytest.fixture
def guests(stage: Stage) -> tuple[Guest, Guest]:
    """Two workloads; the mesh was once called old.example."""
    stage.settings["trust_domain_aliases"] = ["old.example"]
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    stage.start()
    return one, two


def _connect(stage: Stage, one: Guest, two: Guest, identity: str) -> str:
    """What a client of this identity is answered; its chain is good in any case."""
    plain = dial_uncaptured(one.netns, two.netns.address, PORT_HBONE)
    context = stage.plane.leaf(identity).context(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(ConnectionError, ssl.SSLError), HboneClient(plain, context) as client:
        return client.connect(f"{two.netns.address}:{PORT}")[1]
    return "refused"


def test_client_of_an_alias_is_accepted_and_of_a_foreign_domain_refused(
    stage: Stage, guests: tuple[Guest, Guest]
) -> None:
    """Istio's ztunnel knows no aliases; a foreign trust domain is refused as there."""
    one, two = guests
    stage.snapshot(one, two)
    stage.wait_ready()
    with echo_app(two.netns, PORT):
        assert _connect(stage, one, two, f"{ALIAS}/sa1") == "200"
        assert _connect(stage, one, two, f"{FOREIGN}/sa1") in ("refused", "closed")
    line = stage.wait_log("connection complete", 'direction="inbound"')
    assert f'src.identity="{ALIAS}/sa1"' in line
    stage.wait_log("did not present the expected trustdomain (cluster.local)", FOREIGN)


@pytest.mark.parametrize(("identity", "good"), [(ALIAS, True), (FOREIGN, False)])
def test_server_may_present_its_identity_under_an_alias(
    stage: Stage, guests: tuple[Guest, Guest], identity: str, good: bool
) -> None:
    """The control plane knows the server under the mesh's own trust domain."""
    one, two = guests
    stage.snapshot(one)
    stage.wait_ready()
    context = stage.plane.leaf(f"{identity}/sa2").context(ssl.PROTOCOL_TLS_SERVER)
    listener = two.netns.do(lambda: socket.create_server(("0.0.0.0", PORT_HBONE)))
    with HboneServer(listener, context):
        answer = ask(one.netns, two.netns.address, PORT, b"hello")
        stage.stop()  # or the server would wait for more of its connection
    assert answer == (b"hello" if good else b"")
    if not good:
        stage.wait_log("did not present the expected SAN", f"{FOREIGN}/sa2")
