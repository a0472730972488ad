"""Checks the host before anything is made, and says how to get what is missing."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from pathlib import Path

from lab.driver import names, network
from lab.driver.errors import PreflightError
from lab.driver.plan import MAX_NUMBER, underlays
from lab.packages import COMMANDS, KEYRING, KEYRING_PACKAGE

# What the plays load on the nodes, tried in a namespace that is thrown away.
_PROBE_RULES = """
ip link add mm-probe type bridge && ip link add mm-probe0 type veth peer name mm-probe1 &&
nft -f - <<'RULES'
table inet probe {
  chain nat { type nat hook output priority -100; tcp dport 1-65535 redirect to :15001; }
  chain mangle { type route hook output priority -150; ct mark 0x111 meta mark set ct mark; }
  chain filter { type filter hook input priority 0; ct state established counter accept; }
}
RULES
"""


def check_host() -> None:
    """Raise PreflightError listing everything the host lacks."""
    problems = [*_missing_rights(), *_missing_commands()]
    if not problems:
        problems = [*_missing_kernel_features()]
    if problems:
        raise PreflightError("this host cannot run a lab:\n  " + "\n  ".join(problems))


def _missing_rights() -> list[str]:
    if os.geteuid() == 0:
        return []
    return ["you are not root; run the command with sudo"]


def _missing_commands() -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = {pkg for command, pkg in COMMANDS.items() if not shutil.which(command, path=path)}
    if not Path(KEYRING).exists():
        packages.add(KEYRING_PACKAGE)
    if not packages:
        return []
    return [f"missing: {', '.join(sorted(packages))}; get it by `make setup` or apt-get install"]


def _missing_kernel_features() -> list[str]:
    problems = []
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        loaded = subprocess.run(["modprobe", "overlay"], capture_output=True, check=False)
        if loaded.returncode:
            problems.append("the kernel has no overlayfs; run a kernel with CONFIG_OVERLAY_FS")
    if not Path("/proc/sys/net/ipv6").is_dir():
        problems.append("IPv6 is switched off; boot without ipv6.disable=1")
    probe = subprocess.run(
        ["unshare", "--net", "sh", "-c", _PROBE_RULES], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        problems.append(
            "the kernel lacks network namespaces, bridge, veth or nf_tables with nat and ct:"
            f" {probe.stderr.strip()}; run a distribution kernel with these modules"
        )
    return problems


def check_addresses(lab: str, number: int) -> None:
    """Raise PreflightError when a network of this lab number is reached elsewhere already."""
    conflict = find_conflict(number)
    if conflict:
        raise PreflightError(f"lab {lab!r} {conflict}; remove that route or that link first")


def find_conflict(number: int) -> str | None:
    """Say which link has the addresses of this lab number; None when they are free."""
    link = names.host_link(number)
    for text, other in network.occupied_networks(link):
        for underlay in underlays(number):
            taken = ipaddress.ip_network(text, strict=False)
            if taken.version == underlay.version and taken.overlaps(underlay):
                return f"needs {underlay}, but link {other!r} of this host has a route to {taken}"
    return None


def free_number(used: set[int]) -> int:
    """The lowest lab number that neither another lab nor the host's routes use."""
    for number in range(1, MAX_NUMBER + 1):
        if number not in used and find_conflict(number) is None:
            return number
    raise PreflightError(
        f"no free underlay among 10.77.1.0/24 to 10.77.{MAX_NUMBER}.0/24; take other labs down"
        " (`lab/lab down --all`) or remove the routes that cover them"
    )
