"""Names of a lab's objects: what belongs to whom."""

from __future__ import annotations

import pytest

from lab.driver import names
from lab.driver.errors import InventoryError


@pytest.mark.parametrize(
    ("name", "lab"),
    [
        ("mm-lab-default-node1", "default"),
        ("mm-lab-default-fab", "default"),
        ("mm-lab-node-base-default-node1", "node-base-default"),
        ("mm-lab-a-b-node1", "a-b"),
        ("mm-lab-node1", None),
        ("mm-lab-", None),
        ("mm-t1234-a", None),
        ("eth0", None),
        ("", None),
    ],
)
def test_owner_of_a_name_is_unambiguous(name: str, lab: str | None) -> None:
    """Lab `a` must never take down what lab `a-b` owns, nor anything of anybody else."""
    assert names.owner(name) == lab


@pytest.mark.parametrize("lab", ["a", "default", "a-b", "7", "x" * 40])
def test_every_object_of_a_lab_is_owned_by_it(lab: str) -> None:
    """Names made by one function are recognised by the other."""
    assert names.owner(names.object_name(names.check_lab_name(lab), "node1")) == lab
    assert names.owner(names.object_name(lab, names.FABRIC_PART)) == lab


@pytest.mark.parametrize("lab", ["", "-a", "a-", "A", "a_b", "a/b", "..", "x" * 41, "a b"])
def test_lab_name_that_cannot_name_objects_is_refused(lab: str) -> None:
    """A name ends up in paths, links and units."""
    with pytest.raises(InventoryError, match="lab name"):
        names.check_lab_name(lab)


@pytest.mark.parametrize("node", ["", "fab", "1node", "Node", "a-b", "n" * 12, "a.b"])
def test_node_name_that_cannot_name_objects_is_refused(node: str) -> None:
    """A hyphen would make the owner ambiguous, a twelfth letter the link's name too long."""
    with pytest.raises(InventoryError, match="node"):
        names.check_node_name(node)
