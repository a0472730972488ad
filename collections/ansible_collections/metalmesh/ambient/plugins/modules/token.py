#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

"""Join tokens of nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: token
short_description: One-time tokens by which nodes join the mesh
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Mints a token that lets one node join the mesh once, or revokes what was minted for it and has
    not been used. Run it on the control-plane node.
  - Only a hash of a token is kept, so it can be read from the result of the task that minted it and
    nowhere else. Give that task C(no_log).
options:
  node:
    description: Name of the node; nobody else can use the token.
    type: str
    required: true
  state:
    description:
      - V(present) mints a new token, always. V(absent) revokes the unused tokens of the node.
    type: str
    choices: [present, absent]
    default: present
  ttl_seconds:
    description: Life of the token, in seconds; at most an hour.
    type: int
    default: 3600
  tokens_dir:
    description: Where the control plane keeps what it knows of tokens.
    type: path
    default: /var/lib/metalmesh/tokens
  user:
    description: The control plane's user, which has to be able to read what is minted.
    type: str
    default: metalmesh-controlplane
requirements:
  - metalmesh on the machine, as the role P(metalmesh.ambient.runtime#role) installs it
extends_documentation_fragment:
  - metalmesh.ambient._attributes
attributes:
  diff_mode:
    support: none
    description: A token must not be shown.
  idempotent:
    support: partial
    description:
      - V(absent) is; V(present) mints a new token each time, because the old one cannot be read.
"""

EXAMPLES = r"""
- name: Mint a join token
  metalmesh.ambient.token:
    node: node1
  delegate_to: cp1
  register: join
  no_log: true

- name: Revoke it if it was not used
  metalmesh.ambient.token:
    node: node1
    state: absent
  delegate_to: cp1
"""

RETURN = r"""
token:
  description: The token, of O(state=present) outside of check mode.
  type: str
  returned: when minted
revoked:
  description: Ids of the tokens that were revoked, or would be in check mode.
  type: list
  elements: str
  returned: when O(state=absent)
"""

import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.metalmesh.ambient.plugins.module_utils import _io
from ansible_collections.metalmesh.ambient.plugins.module_utils._store import RUNTIME


def plan_revocation(records: list[dict[str, Any]], node: str) -> list[str]:
    """Return the ids of the unused tokens of a node."""
    return sorted(str(record["id"]) for record in records if record["node"] == node)


def run_token(module: AnsibleModule, *arguments: str) -> str:
    """Run `metalmesh token` as the control plane's user."""
    params = module.params
    command = ["runuser", "-u", params["user"], "--", os.path.join(RUNTIME, "bin", "metalmesh")]
    command += ["token", *arguments, "--tokens-dir", params["tokens_dir"]]
    code, out, err = module.run_command(command)
    if code != 0:
        raise _io.ModuleError(
            f"metalmesh token {arguments[0]} failed: {err.strip()}",
            "Run this on the control-plane node, after the roles runtime and control_plane",
        )
    return str(out).strip()


def present(module: AnsibleModule) -> dict[str, Any]:
    """Mint a token."""
    if module.check_mode:
        return {"changed": True}
    ttl = str(module.params["ttl_seconds"])
    token = run_token(module, "create", "--node", module.params["node"], "--ttl", ttl)
    return {"changed": True, "token": token}


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Revoke the unused tokens of the node."""
    if not os.path.isdir(module.params["tokens_dir"]):
        return {"changed": False, "revoked": []}
    records = json.loads(run_token(module, "list", "--output", "json"))
    revoked = plan_revocation(records, module.params["node"])
    for token_id in [] if module.check_mode else revoked:
        run_token(module, "revoke", token_id)
    return {"changed": bool(revoked), "revoked": revoked}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "ttl_seconds": {"type": "int", "default": 3600},
            "tokens_dir": {"type": "path", "default": "/var/lib/metalmesh/tokens"},
            "user": {"type": "str", "default": "metalmesh-controlplane"},
        },
        supports_check_mode=True,
    )
    try:
        result = present(module) if module.params["state"] == "present" else absent(module)
    except _io.ModuleError as error:
        module.fail_json(msg=str(error))
    else:
        module.exit_json(**result)


if __name__ == "__main__":
    main()
