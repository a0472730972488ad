"""What is in a node image. Pure; the image's cache key is the hash of this recipe.

The image is a Debian as an operator would find it on a server: systemd, sshd, Python, sudo.
Missing on purpose: a resolver, package indexes and everything that waits for hardware.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

FORMAT = 1
"""Raise when the build itself changes in a way the fields below do not show."""

PACKAGES = (
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "iputils-ping",
    "netbase",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",  # ansible.builtin.apt and package_facts
    "sudo",
    "systemd",
    "systemd-sysv",
    "tcpdump",
)
"""Installed without recommends. Nodes get their virtual environments from a wheelhouse: no pip."""

MASKED_UNITS = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty@tty1.service",
    "sshd-keygen.service",  # every node is given its own host key
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-firstboot.service",
    "systemd-modules-load.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
)
"""Units that fail or wait in a container, or that need the internet."""

EXCLUDED_PATHS = tuple(f"/usr/share/{name}/*" for name in ("doc", "info", "locale", "man"))
"""Not unpacked: nobody reads them on a lab node, and they cost time and disk."""

FILES = {
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/ssh/sshd_config.d/lab.conf": (
        "# Only the key the lab gave this node; DNS does not exist here.\n"
        "HostKey /etc/ssh/ssh_host_ed25519_key\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "UseDNS no\n"
        "MaxStartups 100\n"
    ),
    "etc/resolv.conf": "# The lab has no name server; nodes know each other from /etc/hosts.\n",
}
"""Files written into the image, by path."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """An image that can be built."""

    release: str
    """Debian release, for example ``trixie``."""
    mirror: str
    """URI of the Debian archive. Not part of the hash: every mirror holds the same packages."""

    @property
    def digest(self) -> str:
        """Changes whenever the content of the image would."""
        content = (FORMAT, self.release, PACKAGES, MASKED_UNITS, EXCLUDED_PATHS, FILES)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name of the image's directory in the cache."""
        return f"{self.release}-{self.digest}"
