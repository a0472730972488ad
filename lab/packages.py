"""Debian packages the lab needs on the host. Used before anything is installed: no imports."""

COMMANDS = {
    "apt-config": "apt",
    "curl": "curl",
    "git": "git",  # molecule finds its base configuration at the root of the work tree
    "ip": "iproute2",
    "make": "make",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ssh": "openssh-client",
    "systemd-nspawn": "systemd-container",
    "tcpdump": "tcpdump",
    "unshare": "util-linux",
}
"""Commands the lab and its tests run, and the package each is in."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
"""Signatures of the Debian archive are checked against this file, of the package below."""
KEYRING_PACKAGE = "debian-archive-keyring"
