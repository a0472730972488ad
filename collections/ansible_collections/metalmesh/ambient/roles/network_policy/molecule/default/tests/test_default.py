"""Resources are in force, validated, and go when nobody declares them."""

from __future__ import annotations

from tests.support.roles import get_json

STORE = "/var/lib/metalmesh/store"


def test_every_object_has_a_file_of_its_own(host):
    """Named by kind, namespace and name; root's; with the owner in the first line."""
    for path in (
        "PeerAuthentication/demo/default",
        "NetworkPolicy/demo/only-http",
        "Namespace/_cluster/demo",
    ):
        found = host.file(f"{STORE}/{path}.yaml")
        assert (found.user, found.mode) == ("root", 0o644)
        assert found.content_string.startswith("# Managed by Ansible, owner: resources\n")


def test_control_plane_has_accepted_them(host):
    """What is in the store is what the control plane serves."""
    resources = str(get_json(host, "http://127.0.0.1:15014/debug/resources"))
    assert "only-http" in resources
    assert host.run(f"metalmesh validate {STORE}").rc == 0


def test_objects_of_others_stay(host):
    """The machine's own record is another role's: pruning must not touch it."""
    host.check_output(
        f"mkdir -p {STORE}/ServiceAccount/demo && echo"
        " '{apiVersion: v1, kind: ServiceAccount, metadata: {name: mine, namespace: demo}}'"
        f" >{STORE}/ServiceAccount/demo/mine.yaml"
    )
    assert host.run(f"metalmesh validate {STORE}").rc == 0
