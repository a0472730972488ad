"""Debian 12 gets a release for its own Python."""

from __future__ import annotations


def test_machine_is_what_the_scenario_says(host):
    """Or the scenario would prove nothing."""
    assert host.system_info.codename == "bookworm"


def test_release_is_for_python_3_11(host):
    """The controller resolves wheels for the node's Python, not for its own."""
    assert host.file("/opt/metalmesh/current/lib/python3.11/site-packages").is_directory
    done = host.run("runuser -u nobody -- /usr/local/bin/metalmesh --version")
    assert done.rc == 0, done.stderr


def test_native_packages_load(host):
    """The wheels fit this glibc."""
    code = "import cryptography.hazmat.bindings._rust, grpc, yaml"
    assert host.run(f"/opt/metalmesh/current/bin/python3 -I -c '{code}'").rc == 0
