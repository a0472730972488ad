"""The programs are installed, whole, and for everybody who is to run them."""

from __future__ import annotations

import re


def test_release_is_current_and_complete(host):
    """One directory per release, named by version and digest; nothing half-unpacked is left."""
    current = host.file("/opt/metalmesh/current")
    assert current.is_symlink
    assert re.fullmatch(r"/opt/metalmesh/\d+\.\d+\.\d+-[0-9a-f]{8}", current.linked_to)
    assert host.file("/opt/metalmesh").listdir() == [current.linked_to.split("/")[-1], "current"]


def test_command_runs_as_an_unprivileged_user(host):
    """The services have users of their own, who only read the release."""
    done = host.run("runuser -u nobody -- /usr/local/bin/metalmesh --version")
    assert done.rc == 0, done.stderr
    assert done.stdout.startswith("metalmesh ")


def test_release_is_isolated_from_the_machines_python(host):
    """Packages come from the release alone; native ones fit this Python."""
    python = "/opt/metalmesh/current/bin/python3"
    code = "import cryptography.hazmat.bindings._rust, grpc, yaml, sys; print(grpc.__file__)"
    assert host.check_output(f"{python} -I -c '{code}'").startswith("/opt/metalmesh/")
    assert host.run("/usr/bin/python3 -c 'import grpc'").rc != 0


def test_nobody_but_root_can_change_the_release(host):
    """What runs with capabilities must not be writable by services."""
    loose = "find /opt/metalmesh ! -type l ( -perm /022 -o ! -user root )"
    assert host.check_output(loose.replace("(", r"\(").replace(")", r"\)")) == ""


def test_packages_are_compiled_before_they_are_used(host):
    """Services cannot write below /opt; without this each start would compile again."""
    site = host.check_output("echo /opt/metalmesh/current/lib/python3.*/site-packages/metalmesh")
    assert host.file(f"{site}/__pycache__").is_directory
