"""Every machine trusts the root; the issuing key is where it signs and nowhere else."""

from __future__ import annotations

import pytest

from tests.support.roles import assert_file

CA = "/var/lib/metalmesh/ca"
ROOT = "/etc/metalmesh/root-cert.pem"


@pytest.fixture
def is_control_plane(host):
    """Whether the machine at hand runs the control plane."""
    return host.check_output("hostname") == "cp1"


def test_root_certificate_is_a_ca_that_everybody_reads(host):
    """ztunnel and node agent verify the control plane by it, as their own users."""
    assert_file(host, ROOT, user="root", group="root", mode=0o644)
    text = host.check_output(f"openssl x509 -noout -text -in {ROOT}")
    assert "CA:TRUE" in text
    assert "id-ecPublicKey" in text
    assert "prime256v1" in text


def test_issuing_key_is_on_the_control_plane_alone(host, is_control_plane):
    """And there for root alone: the service gets it as a credential."""
    if is_control_plane:
        assert_file(host, f"{CA}/issuing-key.pem", user="root", group="root", mode=0o600)
        readable = host.run(f"runuser -u metalmesh-controlplane -- cat {CA}/issuing-key.pem")
        assert readable.rc != 0
    else:
        assert not host.file(CA).exists


def test_root_key_is_on_no_machine(host):
    """It stays on the controller."""
    assert host.check_output("find / -xdev -name root-key.pem") == ""


def test_issuing_certificate_is_signed_by_the_root_for_its_key(host, is_control_plane):
    """What the control plane signs with chains up to what everybody trusts."""
    if is_control_plane:
        assert host.run(f"openssl verify -CAfile {ROOT} {CA}/issuing-cert.pem").rc == 0
        of_cert = host.check_output(f"openssl x509 -noout -pubkey -in {CA}/issuing-cert.pem")
        assert host.check_output(f"openssl pkey -pubout -in {CA}/issuing-key.pem") == of_cert
