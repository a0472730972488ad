"""The control-plane node makes and keeps the root key itself."""

from __future__ import annotations

from tests.support.roles import assert_file

CA = "/var/lib/metalmesh/ca"


def test_root_key_is_on_the_control_plane_for_root_alone(host):
    """And on no other machine."""
    if host.check_output("hostname") == "cp1":
        assert_file(host, f"{CA}/root/root-key.pem", user="root", group="root", mode=0o600)
    else:
        assert host.check_output("find / -xdev -name root-key.pem") == ""


def test_every_machine_trusts_the_root(host):
    """The node got the certificate that the control plane made."""
    path = "/etc/metalmesh/root-cert.pem"
    assert_file(host, path, user="root", group="root", mode=0o644)
    assert host.run(f"openssl verify -CAfile {path} {path}").rc == 0
