"""The machine is fit for the mesh: users, directories, kernel settings."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("name", ["metalmesh-ztunnel", "metalmesh-controlplane"])
def test_service_user_cannot_log_in(host, name):
    """Each service has a user of its own that nobody logs in as."""
    user = host.user(name)
    assert user.exists
    assert user.group == name
    assert user.shell.endswith("nologin")
    assert user.uid < 1000


def test_shared_group_has_no_members_of_its_own(host):
    """The group that may read the node token is given to services by their units alone."""
    assert host.group("metalmesh").exists
    assert not host.group("metalmesh").members


@pytest.mark.parametrize("path", ["/etc/metalmesh", "/var/lib/metalmesh"])
def test_directory_belongs_to_root(host, path):
    """Nobody but root decides what is below the mesh's directories."""
    directory = host.file(path)
    assert directory.is_directory
    assert (directory.user, directory.group, directory.mode) == ("root", "root", 0o755)


def test_machine_forwards_and_will_after_a_boot(host):
    """Workloads have networks of their own, which the machine routes."""
    assert host.sysctl("net.ipv4.ip_forward") == 1
    settings = host.file("/etc/sysctl.d/90-metalmesh.conf")
    assert settings.contains("^net.ipv4.ip_forward = 1$")
    assert (settings.user, settings.mode) == ("root", 0o644)


def test_former_forwarding_is_remembered_for_uninstalling(host):
    """What the machine had before is written down once and not overwritten by later runs."""
    assert host.file("/var/lib/metalmesh/sysctl-before.conf").contains("^-net.ipv4.ip_forward = 0$")
