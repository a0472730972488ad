"""Names of everything a lab creates on the host, and whose lab a name belongs to.

Every object is called ``mm-lab-<lab>-<part>``. A part (a node, or ``fab`` for the fabric)
holds no hyphen, so the owner of a name is always unambiguous: lab ``a`` never mistakes an
object of lab ``a-b`` for its own. Pure: nothing here touches the host.
"""

from __future__ import annotations

import re
from pathlib import Path

from lab.driver.errors import InventoryError

PREFIX = "mm-lab-"
FABRIC_PART = "fab"
BRIDGE = "mm-br0"
"""Bridge inside the fabric's namespace."""
HOST_LINK_PREFIX = "mm-lab"
"""The host's end of the link into the fabric is called ``mm-lab<number>``."""

STATE_ROOT = Path("/var/lib/metalmesh-lab")
"""Overlays and keys, one directory per lab. On disk: nodes keep their files over a reboot."""
RUN_ROOT = Path("/run/metalmesh-lab")
"""Locks and sockets."""

_LAB = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_NODE = re.compile(r"[a-z][a-z0-9]{0,10}")


def check_lab_name(name: str) -> str:
    """Return the name, or say why no lab can be called that."""
    if not _LAB.fullmatch(name):
        raise InventoryError(
            f"lab name {name!r}: use at most 40 lower-case letters, digits and inner hyphens"
        )
    return name


def check_node_name(name: str) -> str:
    """Return the name, or say why no node can be called that (links hold 15 characters)."""
    if not _NODE.fullmatch(name) or name == FABRIC_PART:
        raise InventoryError(
            f"node {name!r}: use a letter and at most 10 further lower-case letters or digits,"
            f" and not {FABRIC_PART!r}"
        )
    return name


def object_name(lab: str, part: str) -> str:
    """Name of a machine, network namespace, cgroup or unit."""
    return f"{PREFIX}{lab}-{part}"


def owner(name: str) -> str | None:
    """The lab an object belongs to; None when it is not a lab's."""
    if not name.startswith(PREFIX):
        return None
    lab, hyphen, part = name.removeprefix(PREFIX).rpartition("-")
    return lab if lab and hyphen and part else None


def node_link(node: str) -> str:
    """The fabric's end of a node's link, where its traffic can be captured."""
    return f"mm-{node}"


def host_link(number: int) -> str:
    """The host's end of the link into the fabric of the lab with this number."""
    return f"{HOST_LINK_PREFIX}{number}"
