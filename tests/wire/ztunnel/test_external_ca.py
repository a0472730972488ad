"""Certificates from another server of Istio's CA API than the control plane."""

from __future__ import annotations

import pytest
from cryptography import x509

from tests.support.apps import ask, echo_app
from tests.support.scripted_plane import ScriptedPlane
from tests.support.ztunnel_stage import Stage

pytestmark = pytest.mark.root
PORT = 8080


def test_external_ca_signs_for_workloads_of_this_control_plane(stage: Stage) -> None:
    """Its own address, root, token; what it signs is what peers trust (istio-facts 4)."""
    directory = stage.directory / "external"
    directory.mkdir()
    (directory / "token").write_text("token-for-the-ca\n")
    external = ScriptedPlane(stage.node, directory, "127.0.0.1:15112")
    stage.settings |= {
        "ca_address": "127.0.0.1:15112",
        "ca_root_cert_path": str(external.root_path),
        "ca_token_path": str(directory / "token"),
    }
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    external.start()
    try:
        stage.start()
        stage.snapshot(one, two)
        stage.wait_ready()
        with echo_app(two.netns, PORT):
            assert ask(one.netns, two.netns.address, PORT, b"hello") == b"hello"
    finally:
        external.stop()
    assert stage.plane.signed == []
    assert {str(guest.workload.identity) for guest in (one, two)} == set(external.signed)
    assert {item["authorization"] for item in external.ca_metadata} == {"Bearer token-for-the-ca"}
    root = x509.load_pem_x509_certificate(external.root_path.read_bytes())
    for held in stage.dump()["certificates"]:
        assert [item["serialNumber"] for item in held["rootCerts"]] == [str(root.serial_number)]
    assert stage.plane.metadata[0]["authorization"] == "Bearer token-of-node1"
