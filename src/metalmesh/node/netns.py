"""A workload's network namespace: up, down, list; nothing here needs the control plane.

``bring_up`` is fail-closed by its order: capture and policies are in force before the link has an
address, and the record that announces the netns is written last. It is idempotent and repairs: on
a netns that is as it should be it changes nothing, so the agent uses it to look for drift, too.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.constants import HOST_NETNS
from metalmesh.errors import NetworkError
from metalmesh.net import pyroute2_light, sysctl
from metalmesh.net.netlink import open_netlink
from metalmesh.net.netns import NETNS_DIR, in_netns, open_netns
from metalmesh.node.host import ensure_host, release_host
from metalmesh.node.links import LinkPlan, LinkShell, remove_link
from metalmesh.node.node_tables import ensure_policy_table
from metalmesh.node.redirection import Applied, ensure_redirection
from metalmesh.node.state import NetnsRecord

if TYPE_CHECKING:
    from metalmesh.node.config import NodeConfig
    from metalmesh.node.state import NodeState
    from metalmesh.node.workload_spec import LocalWorkload

_FORWARDING: Final = "ipv4/ip_forward"
_FORWARDING6: Final = "ipv6/conf/all/forwarding"
_OWN_NETNS: Final = Path("/proc/self/ns/net")


def netns_path(name: str) -> Path:
    """Where a named namespace is found; ``host`` is the one this process began in."""
    return _OWN_NETNS if name == HOST_NETNS else NETNS_DIR / name


def bring_up(workload: LocalWorkload, config: NodeConfig, state: NodeState) -> list[str]:
    """Make or repair the netns of a workload; return what had to be changed."""
    config = _possible(config)
    with state.locked():
        changes = ensure_node_settings(ipv6=config.ipv6)
        if workload.is_host:
            return changes + ensure_host(workload, config, state, netns_path(HOST_NETNS))
        changes += _ensure_netns(workload.netns)
        fd = open_netns(netns_path(workload.netns))
        try:
            return changes + _bring_up_inside(workload, config, state, fd)
        finally:
            os.close(fd)


def repair(workload: LocalWorkload, config: NodeConfig, state: NodeState) -> list[str]:
    """Like :func:`bring_up` for a netns that is up; one that is not stays down."""
    config = _possible(config)
    with state.locked():
        if workload.netns not in state.records():
            return []
        if workload.is_host:
            return ensure_host(workload, config, state, netns_path(HOST_NETNS))
        if not _is_namespace(netns_path(workload.netns)):
            raise NetworkError(
                f"netns {workload.netns} was deleted without `metalmesh node netns down`; "
                f"restart metalmesh-netns@{workload.netns}.service and what runs in it"
            )
        fd = open_netns(netns_path(workload.netns))
        try:
            return _bring_up_inside(workload, config, state, fd)
        finally:
            os.close(fd)


def _possible(config: NodeConfig) -> NodeConfig:
    """A kernel without IPv6 has nothing to capture there."""
    return replace(config, ipv6=config.ipv6 and sysctl.exists(_FORWARDING6))


def _bring_up_inside(
    workload: LocalWorkload, config: NodeConfig, state: NodeState, fd: int
) -> list[str]:
    records = state.records()
    record = records.get(workload.netns)
    inode = os.fstat(fd).st_ino
    before = Applied()
    if record is not None and record.inode == inode:
        before = Applied(record.redirection, record.tables)
    plan = LinkPlan(workload.netns, workload.addresses)
    with open_netlink() as node, open_netlink(fd) as inside:
        shell = LinkShell(plan, node, inside, fd)
        shell.prepare_netns(ipv6=config.ipv6)
        applied, changes = ensure_redirection(workload, config, fd, inside, before)
        shell.ensure_pair()
        wanted = NetnsRecord(
            netns=workload.netns,
            uid=workload.uid,
            inode=inode,
            link=plan.host_link,
            addresses=tuple(str(item) for item in workload.addresses),
            captured=workload.captured,
            redirection=applied.digest,
            tables=applied.tables,
        )
        records[workload.netns] = wanted
        changes += ensure_policy_table(state, records.values())
        shell.configure(ipv6=config.ipv6)
        shell.wait_until_running()
    if wanted != record:
        state.write_record(wanted)
    return shell.changes + changes


def take_down(name: str, state: NodeState) -> list[str]:
    """Remove a netns and everything that was made for it; return what there was."""
    changes = []
    with state.locked():
        if name == HOST_NETNS:
            return release_host(state)
        records = state.records()
        if records.pop(name, None) is not None:
            # the agent takes the workload from the ztunnel as soon as its record is gone
            state.delete_record(name)
            changes.append("record")
        with open_netlink() as node:
            if remove_link(node, name):
                changes.append("link")
        if netns_path(name).exists():
            pyroute2_light.load("netns").remove(name)
            changes.append("netns")
        if changes:
            changes += ensure_policy_table(state, records.values())
    return changes


def ensure_node_settings(*, ipv6: bool) -> list[str]:
    """Let the node forward between its workloads and the other nodes."""
    changes = []
    if sysctl.ensure(_FORWARDING, "1"):
        changes.append(f"setting {_FORWARDING}")
    if ipv6 and sysctl.exists(_FORWARDING6) and sysctl.read(_FORWARDING6) != "1":
        # a forwarding machine ignores router advertisements unless told otherwise (value 2), and
        # would lose the address it is administered by
        for name in sysctl.children("ipv6/conf"):
            setting = f"ipv6/conf/{name}/accept_ra"
            if sysctl.read(setting) == "1":
                sysctl.ensure(setting, "2")
        sysctl.ensure(_FORWARDING6, "1")
        changes.append(f"setting {_FORWARDING6}")
    return changes


def _ensure_netns(name: str) -> list[str]:
    path = netns_path(name)
    if _is_namespace(path):
        return []
    path.unlink(missing_ok=True)  # left by a crash between its two steps
    pyroute2_light.load("netns").create(name)
    if not _is_namespace(path):
        raise NetworkError(
            f"netns {name}: {path} was made but is no namespace; the process needs CAP_SYS_ADMIN "
            "and the machine's own mount namespace (no PrivateMounts= or ProtectSystem=)"
        )
    return [f"netns {name}"]


def _is_namespace(path: Path) -> bool:
    """Whether a namespace is mounted there (an empty file is not one)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        with in_netns(fd):
            return True
    except NetworkError:
        return False
    finally:
        os.close(fd)
