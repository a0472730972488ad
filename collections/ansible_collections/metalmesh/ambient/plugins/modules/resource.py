#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

"""Objects of the mesh in the control plane's store."""

from __future__ import annotations

DOCUMENTATION = r"""
module: resource
short_description: Objects of the mesh in the control plane's store
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Brings Kubernetes, Istio and Gateway API objects into the store of the control plane, or removes
    them. Run it on the control-plane node.
  - The store as it would become is validated first, together with everything that is in it already;
    an object that is refused changes nothing at all. What was wrong before is pointed out.
  - Every file is replaced atomically; the control plane takes it up at once.
options:
  definition:
    description:
      - One object or a list of objects, as in their YAML. With O(state=absent) their kind and name
        suffice.
    type: raw
    default: []
  state:
    description: Whether the objects are in the store.
    type: str
    choices: [present, absent]
    default: present
  owner:
    description: Noted in the files this task writes, for O(prune).
    type: str
    default: ansible
  prune:
    description:
      - Remove what was written with the same O(owner) and is not in O(definition).
      - With O(state=absent), remove everything of O(owner).
    type: bool
    default: false
  prune_kinds:
    description: Of which kinds surplus objects are removed; left out, of every kind.
    type: list
    elements: str
    default: []
  create_only_kinds:
    description: Objects of these kinds are made when they are missing and otherwise left alone.
    type: list
    elements: str
    default: []
  store_dir:
    description: The store.
    type: path
    default: /var/lib/metalmesh/store
requirements:
  - metalmesh on the machine, as the role P(metalmesh.ambient.runtime#role) installs it
extends_documentation_fragment:
  - metalmesh.ambient._attributes
seealso:
  - module: metalmesh.ambient.resource_info
"""

EXAMPLES = r"""
- name: Require mutual TLS of every workload in a namespace
  metalmesh.ambient.resource:
    definition:
      apiVersion: security.istio.io/v1
      kind: PeerAuthentication
      metadata: {name: default, namespace: demo}
      spec: {mtls: {mode: STRICT}}

- name: Keep exactly these objects of one application
  metalmesh.ambient.resource:
    definition: "{{ lookup('ansible.builtin.file', 'shop.yaml') | from_yaml_all }}"
    owner: shop
    prune: true

- name: Remove a policy
  metalmesh.ambient.resource:
    state: absent
    definition:
      kind: PeerAuthentication
      metadata: {name: default, namespace: demo}
"""

RETURN = r"""
objects:
  description: The objects that were (or in check mode would be) changed, per verb.
  type: dict
  returned: always
  sample: {created: [PeerAuthentication demo/default], updated: [], removed: []}
warnings_of_validation:
  description: What the validation pointed out without refusing it.
  type: list
  elements: str
  returned: always
"""

import json
import os
from contextlib import nullcontext
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.metalmesh.ambient.plugins.module_utils import (
    _resources,
    _store,
)
from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError

VERBS = ("created", "updated", "removed")


def definitions_of(value: Any) -> list[Any]:
    """Return the objects of the argument; empty documents do not count."""
    return [item for item in (value if isinstance(value, list) else [value]) if item is not None]


def plan(params: dict[str, Any], *, required: bool) -> list[_resources.StoreChange]:
    """Compare the store with the arguments."""
    live = _store.read_store(params["store_dir"])
    definitions = definitions_of(params["definition"])
    if params["state"] == "absent":
        changes = _resources.plan_absent(live, definitions)
    else:
        dump, load = _store.make_codec(required=required)
        made_once = _resources.existing(live, definitions, params["create_only_kinds"])
        definitions = [item for item in definitions if item not in made_once]
        changes = _resources.plan_present(live, definitions, params["owner"], dump, load)
    if params["prune"]:
        wanted = _resources.paths_of(definitions)
        changes += _resources.plan_pruned(
            live,
            params["owner"],
            params["prune_kinds"],
            set() if params["state"] == "absent" else wanted,
        )
    return list({change.key.path: change for change in changes}.values())


def validate(module: AnsibleModule, changes: list[_resources.StoreChange]) -> list[str]:
    """Let metalmesh look at the store as it would become; return what it warns about.

    An object that was wrong before and that nobody touches is no reason to refuse the others.
    """
    command = os.path.join(_store.RUNTIME, "bin", "metalmesh")
    if module.check_mode and not os.path.exists(command):
        return []
    with _store.staged(module.params["store_dir"], changes, module.tmpdir) as folder:
        code, out, err = module.run_command([command, "validate", "--output", "json", folder])
        text = out.replace(f"{folder}/", "")
    try:
        report = json.loads(text)
    except ValueError:
        raise ModuleError(f"metalmesh validate failed ({code}): {err.strip() or out}") from None
    errors, warnings = _resources.sort_findings(report, {change.key.path for change in changes})
    if errors:
        raise ModuleError("refused:\n" + "\n".join(errors), "Nothing was changed")
    return warnings


def run(module: AnsibleModule) -> dict[str, Any]:
    """Plan, validate, apply; return the module's result."""
    root = module.params["store_dir"]
    there = os.path.isdir(root)
    if not there and module.params["state"] == "present" and not module.check_mode:
        raise ModuleError(f"there is no store {root} here", "Run this on the control-plane node")
    with _store.locked(root) if there and not module.check_mode else nullcontext():
        changes = plan(module.params, required=not module.check_mode)
        needs_look = changes and module.params["state"] == "present"
        warnings = validate(module, changes) if needs_look else []
        if not module.check_mode:
            _store.apply(root, changes)
    return {
        "changed": bool(changes),
        "objects": {
            verb: [str(change.key) for change in changes if change.verb == verb] for verb in VERBS
        },
        "warnings_of_validation": warnings,
        "diff": [change.to_diff() for change in changes],
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "definition": {"type": "raw", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "owner": {"type": "str", "default": "ansible"},
            "prune": {"type": "bool", "default": False},
            "prune_kinds": {"type": "list", "elements": "str", "default": []},
            "create_only_kinds": {"type": "list", "elements": "str", "default": []},
            "store_dir": {"type": "path", "default": _store.STORE_DIR},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except ModuleError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or 'the store'}: {error.strerror}")
    else:
        for warning in result["warnings_of_validation"]:
            module.warn(warning)
        module.exit_json(**result)


if __name__ == "__main__":
    main()
