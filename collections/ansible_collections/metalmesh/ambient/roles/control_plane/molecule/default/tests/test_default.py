"""The control plane serves, to those who may ask, and nothing else."""

from __future__ import annotations

from tests.support.roles import assert_file, assert_service, get, get_json, listeners, properties

UNIT = "metalmesh-controlplane.service"
ROOT = "/etc/metalmesh/root-cert.pem"


def test_service_is_supervised_and_sandboxed(host):
    """DESIGN section 2: own user, no capabilities, exposure at most 2.0."""
    assert_service(host, UNIT, exposure_at_most=2.0)
    state = properties(host, UNIT, "User", "CapabilityBoundingSet", "ProtectSystem")
    assert state["User"] == "metalmesh-controlplane"
    assert state["CapabilityBoundingSet"] == ""
    assert state["ProtectSystem"] == "strict"


def test_it_listens_on_its_two_ports(host):
    """15012 for nodes, 15014 for operators."""
    ports = {port for _, port in listeners(host)}
    assert ports - {22} == {15012, 15014}


def test_nodes_can_verify_its_certificate(host):
    """Its certificate carries the names nodes call it by, under the mesh's root, over TLS 1.3."""
    command = f"openssl s_client -connect 127.0.0.1:15012 -CAfile {ROOT} -verify_return_error"
    names = host.check_output("grep server_names /etc/metalmesh/controlplane.yaml")
    assert "node1" in names
    report = host.check_output(
        f"{command} -verify_hostname node1 -alpn h2 -tls1_3 </dev/null 2>&1 | grep -a Verif"
    )
    assert "Verify return code: 0 (ok)" in report


def test_older_tls_is_refused(host):
    """Nothing below TLS 1.3 is spoken in the mesh."""
    done = host.run("openssl s_client -connect 127.0.0.1:15012 -alpn h2 -tls1_2 </dev/null 2>&1")
    assert "Cipher is (NONE)" in done.stdout


def test_issuing_key_reached_the_service_as_a_credential(host):
    """The file is root's; the process reads a copy that is on no disk."""
    assert_file(
        host, "/var/lib/metalmesh/ca/issuing-key.pem", user="root", group="root", mode=0o600
    )
    credentials = f"/run/credentials/{UNIT}/issuing-key.pem"
    assert host.check_output(f"stat -f -c %T {credentials}") in {"tmpfs", "ramfs"}


def test_configuration_is_readable_and_store_belongs_to_root(host):
    """The service reads the store and never writes it: what is in force is what root put there."""
    assert_file(host, "/etc/metalmesh/controlplane.yaml", user="root", group="root", mode=0o644)
    assert (host.file("/var/lib/metalmesh/store").user) == "root"


def test_a_resource_is_taken_up_at_once(host):
    """The behaviour the role is for."""
    path = "/var/lib/metalmesh/store/Namespace/_cluster"
    manifest = "{apiVersion: v1, kind: Namespace, metadata: {name: probe}}"
    host.check_output(f"mkdir -p {path} && echo '{manifest}' >{path}/probe.yaml && sleep 1")
    assert "probe" in str(get_json(host, "http://127.0.0.1:15014/debug/resources"))
    host.check_output(f"rm -r {path}")
    assert get(host, "http://127.0.0.1:15014/ready")[0] == 200
