"""The ztunnel's CRL file: read at the start, followed, and never half believed."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from metalmesh.constants import PORT_HBONE
from tests.support.apps import ask, echo_app
from tests.support.data_worker import dial_uncaptured
from tests.support.peers import HboneClient
from tests.support.pki import Credentials
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage

pytestmark = pytest.mark.root
PORT = 8080
CLIENT = "spiffe://cluster.local/ns/shop/sa/sa1"


@pytest.fixture
def guests(stage: Stage) -> tuple[Guest, Guest]:
    """Two workloads and a ztunnel that follows a CRL file, which is not there yet."""
    stage.settings["crl_path"] = str(stage.directory / "crl.pem")
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    return one, two


def _dial(one: Guest, two: Guest, credentials: Credentials) -> HboneClient:
    plain = dial_uncaptured(one.netns, two.netns.address, PORT_HBONE)
    return HboneClient(plain, credentials.context(ssl.PROTOCOL_TLS_CLIENT))


def _status(one: Guest, two: Guest, credentials: Credentials) -> str:
    with contextlib.suppress(ConnectionError, ssl.SSLError), _dial(one, two, credentials) as client:
        return client.connect(f"{two.netns.address}:{PORT}")[1]
    return "closed"


def test_file_is_followed_and_revoked_peers_are_cut_off(
    stage: Stage, guests: tuple[Guest, Guest]
) -> None:
    """istio-facts 2.3; PEM and DER, a broken or missing file keeps what was known."""
    one, two = guests
    first, second, good = (stage.plane.leaf(CLIENT) for _ in range(3))
    path = stage.directory / "crl.pem"
    with echo_app(two.netns, PORT), _dial(one, two, first) as tunnel:
        assert tunnel.connect(f"{two.netns.address}:{PORT}")[1] == "200"
        path.write_bytes(stage.plane.crl(first.serial))
        assert tunnel.wait_goaway() == 0
        assert _status(one, two, first) == "closed"
        assert _status(one, two, second) == "200"
        both = x509.load_pem_x509_crl(stage.plane.crl(first.serial, second.serial))
        path.write_bytes(both.public_bytes(Encoding.DER))
        wait_until(
            lambda: _status(one, two, second) == "closed", WAITS["policy"], what="DER list in force"
        )
        path.write_bytes(b"broken")
        stage.wait_log("CRL not read; the last good one stays", "not a PEM or DER")
        path.unlink()
        stage.wait_log("what was revoked before stays revoked", "warn")
        assert _status(one, two, first) == "closed"
        assert _status(one, two, good) == "200"
        assert ask(one.netns, two.netns.address, PORT, b"hello") == b"hello"
    metrics = stage.metrics()
    assert 'istio_crl_policy_rejections_total{reporter="destination"}' in metrics
    assert "metalmesh_ztunnel_crl_entries 2" in metrics
    assert "metalmesh_ztunnel_crl_read_failures_total 1" in metrics


def test_list_holds_from_the_first_connection_on(stage: Stage, guests: tuple[Guest, Guest]) -> None:
    """Also in workers that are started later."""
    one, two = guests
    bad = stage.plane.leaf(CLIENT)
    stage.stop()
    (stage.directory / "crl.pem").write_bytes(stage.plane.crl(bad.serial))
    stage.agent.drop()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    with echo_app(two.netns, PORT):
        assert _status(one, two, bad) == "closed"
        assert ask(one.netns, two.netns.address, PORT, b"hello") == b"hello"
