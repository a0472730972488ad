"""The real control plane and a real ztunnel together, at a size that takes a second."""

from __future__ import annotations

from metalmesh.model.resources import parse_documents
from tests.scale import world
from tests.scale.__main__ import measure


def test_generated_mesh_is_valid_and_of_the_size_that_was_asked_for() -> None:
    kinds: dict[str, int] = {}
    for name, text in world.files(300, 60, 30):
        for item in parse_documents(text, name):
            kind = item.id.split(" ")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds == {
        "Namespace": 3,
        "WorkloadEntry": 300,
        "Service": 60,
        "AuthorizationPolicy": 24,
        "NetworkPolicy": 6,
    }


def test_node_follows_a_generated_mesh_and_obeys_a_change() -> None:
    """As ``python -m tests.scale`` measures it, with every wait of it bounded."""
    row = measure(100)
    assert row["workloads"] == 100
    assert row["change_seconds"] > 0
