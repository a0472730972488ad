#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

"""Read objects of the mesh from the control plane's store."""

from __future__ import annotations

DOCUMENTATION = r"""
module: resource_info
short_description: Read objects of the mesh from the control plane's store
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Returns the objects of the control plane's store that match. Run it on the control-plane node.
options:
  kind:
    description: Kind of the objects; left out, any.
    type: str
    default: ''
  namespace:
    description: Their namespace; left out, any.
    type: str
    default: ''
  name:
    description: Their name; left out, any.
    type: str
    default: ''
  store_dir:
    description: The store.
    type: path
    default: /var/lib/metalmesh/store
requirements:
  - metalmesh on the machine, as the role P(metalmesh.ambient.runtime#role) installs it
extends_documentation_fragment:
  - metalmesh.ambient._attributes.info
seealso:
  - module: metalmesh.ambient.resource
"""

EXAMPLES = r"""
- name: Look at the workloads of a namespace
  metalmesh.ambient.resource_info:
    kind: WorkloadEntry
    namespace: demo
"""

RETURN = r"""
resources:
  description: The objects.
  type: list
  elements: dict
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.metalmesh.ambient.plugins.module_utils import (
    _resources,
    _store,
)
from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError


def find(params: dict[str, Any]) -> list[Any]:
    """Read the store and keep what is asked for."""
    texts = _store.read_store(params["store_dir"])
    if not texts:
        return []
    _, load = _store.make_codec(required=True)
    return [
        document
        for document in map(load, texts.values())
        if _resources.matches(document, params["kind"], params["namespace"], params["name"])
    ]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "default": ""},
            "namespace": {"type": "str", "default": ""},
            "name": {"type": "str", "default": ""},
            "store_dir": {"type": "path", "default": _store.STORE_DIR},
        },
        supports_check_mode=True,
    )
    try:
        found = find(module.params)
    except ModuleError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or 'the store'}: {error.strerror}")
    else:
        module.exit_json(changed=False, resources=found)


if __name__ == "__main__":
    main()
