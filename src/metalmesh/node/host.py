"""Capture of the machine's own namespace, for a workload that runs there.

Nothing is made but redirection: the namespace, its links and addresses are the machine's. What
keeps the machine within reach (ssh, the control plane, our own ports) is never captured.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from metalmesh.constants import HOST_NETNS
from metalmesh.net.netlink import open_netlink
from metalmesh.net.netns import open_netns
from metalmesh.node.redirection import Applied, ensure_redirection, remove_host_redirection
from metalmesh.node.state import NetnsRecord

if TYPE_CHECKING:
    from pathlib import Path

    from metalmesh.node.config import NodeConfig
    from metalmesh.node.state import NodeState
    from metalmesh.node.workload_spec import LocalWorkload


def ensure_host(
    workload: LocalWorkload, config: NodeConfig, state: NodeState, path: Path
) -> list[str]:
    """Make or repair the capture, the record last; ``path`` is the namespace. The lock is held."""
    fd = open_netns(path)
    try:
        inode = os.fstat(fd).st_ino
    finally:
        os.close(fd)
    record = state.records().get(HOST_NETNS)
    before = Applied()
    if record is not None and record.inode == inode:
        before = Applied(record.redirection, record.tables)
    with open_netlink() as netlink:
        applied, changes = ensure_redirection(workload, config, None, netlink, before)
    wanted = NetnsRecord(
        netns=HOST_NETNS,
        uid=workload.uid,
        inode=inode,
        link="",
        addresses=tuple(str(item) for item in workload.addresses),
        captured=workload.captured,
        redirection=applied.digest,
        tables=applied.tables,
    )
    if wanted != record:
        state.write_record(wanted)
    return changes


def release_host(state: NodeState) -> list[str]:
    """End the capture; return what there was. The lock is held."""
    changes = []
    if HOST_NETNS in state.records():
        state.delete_record(HOST_NETNS)
        changes.append("record")
    with open_netlink() as netlink:
        return changes + remove_host_redirection(netlink)
