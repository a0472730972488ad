# SPDX-License-Identifier: Apache-2.0

"""Filters that turn `mesh_workloads` into objects of the mesh."""

from __future__ import annotations

DOCUMENTATION = r"""
name: plan_workloads
short_description: From mesh_workloads of a node to the objects of the mesh
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Checks the workloads of one node and gives each its network namespace, its addresses and its
    WorkloadEntry. An error names the position in the list, the key and what to do.
positional: node, cidrs, own_addresses
options:
  _input:
    description: The workloads, see the role P(metalmesh.ambient.workload#role).
    type: list
    elements: dict
    required: true
  node:
    description: Name of the node they run on.
    type: str
    required: true
  cidrs:
    description: Networks of the workloads of this node, one per address family.
    type: list
    elements: str
    required: true
  own_addresses:
    description: Addresses of the machine itself, for a workload in its own namespace.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
planned: >-
  {{ mesh_workloads
     | metalmesh.ambient.plan_workloads('node1', ['10.244.1.0/24'], ['10.77.0.21']) }}
"""

RETURN = r"""
_value:
  description:
    - Per workload C(key), C(netns), C(namespace), C(unit), C(addresses), and the objects C(entry)
      and C(service_account).
  type: list
  elements: dict
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.metalmesh.ambient.plugins.module_utils import _workloads
from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError


def plan_workloads(
    definitions: list[Any], node: str, cidrs: list[str], own_addresses: list[str]
) -> list[dict[str, Any]]:
    """Check and plan the workloads of a node."""
    try:
        return _workloads.plan_workloads(definitions, node, cidrs, own_addresses)
    except ModuleError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter `plan_workloads`."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file."""
        return {"plan_workloads": plan_workloads}
