"""The plays that change the CA, on machines that work meanwhile."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from cryptography import x509

from tests.lab.cast import APP_PORT, Cast
from tests.support.apps import LongConnection
from tests.support.machines import Machine
from tests.support.mesh import ZTUNNEL, Mesh
from tests.support.mixed_load import MixedLoad
from tests.support.waits import WAITS, Wait, wait_until

ROOT = Path(__file__).parents[2]
PLAY_SECONDS = 300
REVOKED = Wait(10.0, "the list is looked at once a second; both peers answer each other")


def play(name: str, **variables: object) -> None:
    """Run a playbook on the lab."""
    command = ["ansible-playbook", f"playbooks/{name}.yml", "-e", json.dumps(variables)]
    done = subprocess.run(  # on the lab that LAB_NAME names, as everything here
        command, cwd=ROOT, capture_output=True, text=True, timeout=PLAY_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def roots(machine: Machine) -> set[int]:
    """Serial numbers of the roots a machine trusts."""
    pem = machine.path("/etc/metalmesh/root-cert.pem").read_bytes()
    return {cert.serial_number for cert in x509.load_pem_x509_certificates(pem)}


def certificates(machine: Machine) -> dict[str, dict]:
    """What the ztunnel of a machine holds, by identity."""
    dump = json.loads(machine.sh("curl -sS http://127.0.0.1:15000/config_dump"))
    return {item["identity"]: item for item in dump["certificates"]}


def test_play_replaces_the_root_and_no_request_fails(mesh: Mesh, cast: Cast) -> None:
    """Three stages, every node checked; nothing on the nodes is restarted."""
    before = {node.name: node.unit(ZTUNNEL, "MainPID")["MainPID"] for node in mesh.nodes}
    old = roots(mesh.nodes[0])
    with MixedLoad([cast.client.netns], cast.server.address, APP_PORT, idle=3) as load:
        play("rotate_ca", ca_rotation="root")
    outcome = load.outcome()
    assert (outcome.failures, outcome.transfers_lost, outcome.idle_lost) == ((), 0, 0)
    assert outcome.requests > 100
    for node in mesh.nodes:
        new = roots(node)
        assert len(new) == 1
        assert not new & old
        for held in certificates(node).values():
            assert {int(item["serialNumber"]) for item in held["rootCerts"]} == new
        assert node.unit(ZTUNNEL, "MainPID")["MainPID"] == before[node.name]


def test_play_revokes_the_certificates_of_an_identity(mesh: Mesh, cast: Cast) -> None:
    """Open tunnels end, and the way back is a new certificate."""
    identity = cast.peer.identity
    with LongConnection(cast.peer.netns, cast.server.address, APP_PORT) as connection:
        assert connection.echo(b"x") == b"x"
        play("revoke", ca_revoked_identities=[identity])
        wait_until(connection.wait_closed, REVOKED, what="tunnel of the revoked peer ended")
    leaf = int(certificates(cast.peer.node)[identity]["certChain"][0]["serialNumber"])
    assert f"serial={leaf:x} " in mesh.control_plane.sh(
        "/opt/metalmesh/current/bin/metalmesh ca crl --dir /var/lib/metalmesh/ca"
    )
    play("rotate_ca")  # everybody gets new certificates

    def served() -> bool:
        try:
            with LongConnection(cast.peer.netns, cast.server.address, APP_PORT) as again:
                return again.echo(b"x") == b"x"
        except OSError:
            return False

    wait_until(served, WAITS["service"], what="peer served with a new certificate")
