#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

"""What the mesh has to know about a machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_facts
short_description: What the mesh has to know about a machine
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Returns the few facts that the roles of this collection decide by, in one round trip and
    without gathering everything else.
  - Kernel features are proven rather than looked up; each is tried in a network namespace of its
    own that vanishes with the trial, so that nothing on the machine changes.
options:
  probe_kernel:
    description: Try the kernel features that redirection needs.
    type: bool
    default: false
  runtime_root:
    description: Directory that holds the installed releases and the link V(current).
    type: path
    default: /opt/metalmesh
  users:
    description: Users to look for.
    type: list
    elements: str
    default: []
  sysctls:
    description:
      - Kernel settings to read, as C(net.ipv4.ip_forward), or with slashes, which names of links
        need and in which V(*) stands for any, as C(net/ipv6/conf/*/accept_ra).
    type: list
    elements: str
    default: []
  node_token_path:
    description: Where the node agent keeps the node's token.
    type: path
    default: /var/lib/metalmesh/node/token
extends_documentation_fragment:
  - metalmesh.ambient._attributes.info
"""

EXAMPLES = r"""
- name: Learn about the machine
  metalmesh.ambient.node_facts:
    probe_kernel: true

- name: Refuse an old systemd
  ansible.builtin.assert:
    that: ansible_facts.mesh_node.systemd_version >= 252
"""

RETURN = r"""
ansible_facts:
  description: One fact, C(mesh_node).
  returned: always
  type: dict
  contains:
    mesh_node:
      description: The machine.
      type: dict
      returned: always
      contains:
        systemd_version:
          description: Version of the running systemd; 0 when the machine was not booted with it.
          type: int
          returned: always
        python_version:
          description: Version of the Python that the services will run on.
          type: str
          returned: always
        architecture:
          description: As C(uname -m) prints it.
          type: str
          returned: always
        kernel:
          description: Release of the kernel.
          type: str
          returned: always
        distribution:
          description: C(ID) and C(VERSION_ID) of os-release.
          type: str
          returned: always
        commands:
          description: Paths of the commands the mesh uses; empty when missing.
          type: dict
          returned: always
        package_manager:
          description: Path of apt-get; empty when there is none.
          type: str
          returned: always
        kernel_missing:
          description: Features that were tried in vain, with what the kernel said.
          type: dict
          returned: always
        runtime_dir:
          description: Directory of the installed release; empty when there is none.
          type: str
          returned: always
        node_token_expires_at:
          description: End of the node token's life, in seconds since 1970; 0 when there is none.
          type: int
          returned: always
        node_token_issued_at:
          description: When it was issued, by the clock of the control plane; 0 when there is none.
          type: int
          returned: always
        token_key_created_at:
          description:
            - When the control plane of this machine made the key that it signs node tokens with;
              0 when there is none. A token that is older is not its own.
          type: int
          returned: always
        time:
          description: The machine's clock, in seconds since 1970.
          type: int
          returned: always
        users_missing:
          description: Those of O(users) that the machine does not have.
          type: list
          elements: str
          returned: always
        sysctls:
          description: Values of O(sysctls); empty where the kernel has no such setting.
          type: dict
          returned: always
        resolv_conf:
          description: Text of /etc/resolv.conf.
          type: str
          returned: always
        resolv_conf_link:
          description: What /etc/resolv.conf points to when it is a link.
          type: str
          returned: always
        resolv_conf_original:
          description: Text of the resolv.conf that was replaced for the node agent; empty if none.
          type: str
          returned: always
"""

import base64
import glob
import json
import os
import platform
import pwd
import re
import shutil
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

COMMANDS = ("nft", "ip", "tar", "unshare", "systemctl", "systemd-sysusers")
PROC_SYS = "/proc/sys"
TOKEN_KEY = "/var/lib/metalmesh/controlplane/node-token-key.pem"
RESOLV_CONF = "/etc/resolv.conf"
RESOLV_CONF_ORIGINAL = "/etc/metalmesh/resolv.conf"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: what redirection asks of the kernel: nat redirect, connection mark, route hook, both families
RULESET = """
table inet metalmesh-probe {
  chain nat { type nat hook output priority -100; tcp dport 1 redirect to :2; }
  chain pre {
    type filter hook prerouting priority -150
    meta mark and 0xfff == 0x539 ct mark set 0x111
  }
  chain out {
    type route hook output priority -150
    ct mark and 0xfff == 0x111 meta mark set ct mark
  }
}
"""

#: feature -> command in a throwaway network namespace (first word: which command it needs)
PROBES: dict[str, tuple[str, list[str], str]] = {
    "network namespaces": ("unshare", ["true"], ""),
    "veth": ("ip", ["ip", "link", "add", "mm0", "type", "veth", "peer", "name", "mm1"], ""),
    "policy routing": ("ip", ["ip", "rule", "add", "fwmark", "0x111/0xfff", "table", "100"], ""),
    "nftables nat, ct mark and route hook": ("nft", ["nft", "-f", "-"], RULESET),
}


def command_paths() -> dict[str, str]:
    """Find the commands the mesh uses."""
    return {name: shutil.which(name, path=SEARCH_PATH) or "" for name in COMMANDS}


def probe_kernel(module: AnsibleModule, commands: dict[str, str]) -> dict[str, str]:
    """Try each feature whose command is here; return the failures."""
    missing: dict[str, str] = {}
    for feature, (needs, command, stdin) in PROBES.items():
        if not (commands[needs] and commands["unshare"]):
            continue
        code, _, err = module.run_command(
            [commands["unshare"], "--net", "--", *command],
            data=stdin,
            environ_update={"PATH": SEARCH_PATH},
        )
        if code != 0:
            missing[feature] = (
                err.strip().splitlines()[-1] if err.strip() else f"exit status {code}"
            )
    return missing


def systemd_version(module: AnsibleModule) -> int:
    """Return the version of the systemd that booted this machine, or 0."""
    if not os.path.isdir("/run/systemd/system"):
        return 0
    _, out, _ = module.run_command(["systemctl", "--version"])
    found = re.match(r"systemd (\d+)", out)
    return int(found.group(1)) if found else 0


def token_claims(path: str) -> dict[str, int]:
    """Return issue and end of a JWT file, or 0; the server decides whether it is genuine."""
    try:
        with open(path, encoding="ascii") as handle:
            payload = handle.read().split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return {"iat": int(claims["iat"]), "exp": int(claims["exp"])}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {"iat": 0, "exp": 0}


def modified_at(path: str) -> int:
    """Return when a file was written, or 0."""
    try:
        return int(os.stat(path).st_mtime)
    except OSError:
        return 0


def os_release() -> str:
    """Return distribution and version."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    return f"{release.get('ID', 'unknown')} {release.get('VERSION_ID', '')}".strip()


def text_of(path: str) -> str:
    """Return the text of a file, or an empty string when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def read_sysctls(names: list[str]) -> dict[str, str]:
    """Return the values of kernel settings; empty where the kernel has no such setting."""
    values: dict[str, str] = {}
    for name in names:
        if "*" in name:
            paths = sorted(glob.glob(os.path.join(PROC_SYS, name)))
            values.update(
                {os.path.relpath(path, PROC_SYS): text_of(path).strip() for path in paths}
            )
        else:
            values[name] = text_of(os.path.join(PROC_SYS, name.replace(".", "/"))).strip()
    return values


def has_user(name: str) -> bool:
    """Return whether the machine has this user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def runtime_dir(root: str) -> str:
    """Return the directory that `current` points to, or an empty string."""
    current = os.path.join(root, "current")
    found = os.path.realpath(current)
    return found if os.path.isfile(os.path.join(found, "bin", "metalmesh")) else ""


def gather(module: AnsibleModule) -> dict[str, Any]:
    """Collect everything."""
    commands = command_paths()
    token = token_claims(module.params["node_token_path"])
    return {
        "systemd_version": systemd_version(module),
        "python_version": platform.python_version(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "distribution": os_release(),
        "commands": commands,
        "package_manager": shutil.which("apt-get", path=SEARCH_PATH) or "",
        "kernel_missing": probe_kernel(module, commands) if module.params["probe_kernel"] else {},
        "runtime_dir": runtime_dir(module.params["runtime_root"]),
        "node_token_expires_at": token["exp"],
        "node_token_issued_at": token["iat"],
        "token_key_created_at": modified_at(TOKEN_KEY),
        "time": int(time.time()),
        "users_missing": [name for name in module.params["users"] if not has_user(name)],
        "sysctls": read_sysctls(module.params["sysctls"]),
        "resolv_conf": text_of(RESOLV_CONF),
        "resolv_conf_link": os.readlink(RESOLV_CONF) if os.path.islink(RESOLV_CONF) else "",
        "resolv_conf_original": text_of(RESOLV_CONF_ORIGINAL),
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "probe_kernel": {"type": "bool", "default": False},
            "users": {"type": "list", "elements": "str", "default": []},
            "sysctls": {"type": "list", "elements": "str", "default": []},
            "runtime_root": {"type": "path", "default": "/opt/metalmesh"},
            "node_token_path": {"type": "path", "default": "/var/lib/metalmesh/node/token"},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, ansible_facts={"mesh_node": gather(module)})


if __name__ == "__main__":
    main()
