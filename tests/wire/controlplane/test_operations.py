"""Failures and restarts: nothing valid is ever lost, and everything is said."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

from cryptography import x509

from metalmesh.constants import TYPE_ADDRESS
from tests.support.waits import Wait, wait_until
from tests.unit.controlplane.conftest import entry
from tests.wire.controlplane.plane import CHANGE, START, Plane, run

UID = "Kubernetes/networking.istio.io/WorkloadEntry/demo/"
SAVE = Wait(10.0, "a failed save is tried again after 2 s; the disk may be slow")
RELOAD = Wait(10.0, "the CA's files are looked at every 2 s")
A = "spiffe://cluster.local/ns/demo/sa/a"


def _served(plane: Plane) -> set[str]:
    client = plane.client("node1")
    stream = client.stream()
    stream.ask(TYPE_ADDRESS)
    names = {item.name for item in stream.take().resources}
    stream.close()
    client.close()
    return names


def _saved_status(plane: Plane) -> dict[str, Any]:
    """What is saved now; nothing before the first save, which is made beside the serving."""
    with contextlib.suppress(FileNotFoundError):
        saved: dict[str, Any] = json.loads((plane.directory / "state/status.json").read_text())
        return saved
    return {}


def _saved_objects(plane: Plane) -> set[str]:
    return {item["object"] for item in _saved_status(plane).get("objects", [])}


def test_broken_object_is_reported_and_its_last_good_version_served(plane: Plane) -> None:
    plane.put("a.yaml", "apiVersion: v1\nkind: [")
    plane.put("c.yaml", entry("c", "10.0.0.3").replace("address:", "adress:"))
    wait_until(lambda: plane.metric("metalmesh_controlplane_object_errors") == 3, CHANGE)
    assert _served(plane) == {UID + "a", UID + "b"}
    status = json.loads(plane.get("/debug/resources"))
    assert status["files"][0]["source"] == "a.yaml"
    by_name = {item["object"]: item for item in status["objects"]}
    assert by_name["WorkloadEntry demo/a"]["outdated"]
    assert not by_name["WorkloadEntry demo/c"]["inForce"]
    assert by_name["WorkloadEntry demo/c"]["errors"][0]["field"] == "spec.address"
    wait_until(lambda: _saved_status(plane) == status, CHANGE)
    # also across a restart
    assert plane.stop() == 0
    plane.start()
    assert _served(plane) == {UID + "a", UID + "b"}
    plane.put("a.yaml", entry("a", "10.0.0.9", node="node1"))
    wait_until(lambda: plane.metric("metalmesh_controlplane_objects_outdated") == 0, CHANGE)
    assert plane.logged("resource error resolved")


POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: audit, namespace: demo}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: plain, namespace: demo}
spec: {rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: demo}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: demo}
spec: {podSelector: {}}
"""


def test_every_kind_of_policy_has_a_status(plane: Plane) -> None:
    """In the debug page and in the saved status; what cannot be enforced is not served."""
    plane.put("policies.yaml", POLICIES)

    def conditions() -> dict[str, tuple[str, str, str]]:
        objects = json.loads(plane.get("/debug/resources"))["objects"]
        return {
            item["object"]: (found["type"], found["status"], found["reason"])
            for item in objects
            for found in item["conditions"]
        }

    expected = {
        "AuthorizationPolicy demo/audit": ("ZtunnelAccepted", "False", "UnsupportedValue"),
        "AuthorizationPolicy demo/plain": ("ZtunnelAccepted", "True", "Accepted"),
        "PeerAuthentication demo/strict": ("ZtunnelAccepted", "True", "Accepted"),
        "NetworkPolicy demo/closed": ("Accepted", "True", "Accepted"),
    }
    wait_until(lambda: conditions() == expected, CHANGE)
    page = json.loads(plane.get("/debug/resources"))
    wait_until(lambda: _saved_status(plane) == page, CHANGE)
    assert "ztunnel does not support the AUDIT action" in json.dumps(page)


def test_lost_store_deletes_nothing(plane: Plane) -> None:
    moved = plane.directory / "elsewhere"
    plane.store.rename(moved)
    wait_until(lambda: plane.metric("metalmesh_controlplane_store_unreadable") == 1, CHANGE)
    assert _served(plane) == {UID + "a", UID + "b"}
    assert plane.logged("resource refused", error=f"the store {plane.store} cannot be read")
    # it may even be gone at the next start
    plane.stop()
    plane.start()
    assert _served(plane) == {UID + "a", UID + "b"}
    moved.rename(plane.store)
    wait_until(lambda: plane.metric("metalmesh_controlplane_store_unreadable") == 0, CHANGE)
    plane.put("c.yaml", entry("c", "10.0.0.3"))
    wait_until(lambda: _served(plane) == {UID + "a", UID + "b", UID + "c"}, CHANGE)


def test_new_directories_and_files_within_are_noticed(plane: Plane) -> None:
    """What appears before the directory is watched, too."""
    below = plane.store / "WorkloadEntry" / "demo"
    below.mkdir(parents=True)
    (below / "c.yaml").write_text(entry("c", "10.0.0.3"))
    wait_until(lambda: UID + "c" in _served(plane), CHANGE)
    (below / "c.yaml").unlink()
    below.rmdir()
    wait_until(lambda: UID + "c" not in _served(plane), CHANGE)
    below.mkdir()
    (below / "d.yaml").write_text(entry("d", "10.0.0.4"))
    wait_until(lambda: UID + "d" in _served(plane), CHANGE)


def test_state_that_cannot_be_written_stops_nothing(plane: Plane) -> None:
    """As with a full disk."""
    state = plane.directory / "state"
    state.rename(plane.directory / "kept")
    plane.put("c.yaml", entry("c", "10.0.0.3"))
    wait_until(lambda: UID + "c" in _served(plane), CHANGE)
    failures = "metalmesh_controlplane_state_write_failures_total"
    wait_until(lambda: plane.metric(failures) >= 1, SAVE)
    assert plane.logged("state not saved", error="cannot be written")
    (plane.directory / "kept").rename(state)
    plane.put("d.yaml", entry("d", "10.0.0.4"))
    wait_until(lambda: "WorkloadEntry demo/d" in _saved_objects(plane), SAVE)


def test_renewed_authority_is_used_without_a_restart(plane: Plane) -> None:
    client = plane.client("node1")
    before = client.certificate(A)
    run("ca", "renew", "--dir", str(plane.directory / "ca"))
    wait_until(lambda: plane.logged("CA reloaded"), RELOAD)
    after = client.certificate(A)
    assert after[1] != before[1]
    assert after[2] == before[2]
    leaf, issuing = (x509.load_pem_x509_certificate(pem.encode()) for pem in after[:2])
    leaf.verify_directly_issued_by(issuing)
    # new connections get a serving certificate of the new authority
    assert plane.client("node1").certificate(A)


def test_damaged_authority_is_not_taken_over(plane: Plane) -> None:
    client = plane.client("node1")
    (plane.directory / "ca" / "issuing-cert.pem").write_text("hello")
    wait_until(lambda: plane.logged("changed CA not taken over; the old one stays"), RELOAD)
    assert client.certificate(A)
    assert plane.metric("metalmesh_controlplane_ca_reload_failures_total") == 1


def test_two_on_one_port_is_an_error_that_says_so(plane: Plane) -> None:
    second = plane.spawn()
    assert second.wait(START.seconds) == 1
    text = plane.log_path.read_text()
    assert f"port {plane.port} on 127.0.0.1 cannot be listened on" in text
    assert "is another control plane running?" in text


def test_start_without_an_authority_says_how_to_make_one(tmp_path: Path) -> None:
    plane = Plane(tmp_path)
    (tmp_path / "ca" / "root-cert.pem").unlink()
    process = plane.spawn()
    assert process.wait(START.seconds) == 1
    assert "make the CA with metalmesh ca init" in plane.log_path.read_text()


def test_killed_process_comes_back_as_it_was(plane: Plane) -> None:
    assert plane.stop(signal.SIGKILL) == -signal.SIGKILL
    plane.start()
    assert _served(plane) == {UID + "a", UID + "b"}
    assert plane.get("/ready") == "ready\n"


def test_idle_memory_stays_within_its_bound(plane: Plane) -> None:
    """80 MB proportional set size."""
    assert plane.process is not None
    rollup = Path(f"/proc/{plane.process.pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss <= 80 * 1024


def test_stop_ends_open_streams_in_good_order(plane: Plane) -> None:
    """A restart is routine: nothing in the journal may look like a fault."""
    client = plane.client("node1")
    stream = client.stream()
    stream.ask(TYPE_ADDRESS)
    stream.take()
    plane.put("more.yaml", entry("more", "10.0.0.77"))
    assert stream.take(), "the stream waits for changes now"
    assert plane.stop() == 0
    stream.close()
    client.close()
    text = plane.log_path.read_text()
    assert "Traceback" not in text
    assert "CancelledError" not in text
