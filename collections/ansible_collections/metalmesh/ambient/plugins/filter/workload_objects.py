# SPDX-License-Identifier: Apache-2.0

"""Filter that lists what the store needs for planned workloads."""

from __future__ import annotations

DOCUMENTATION = r"""
name: workload_objects
short_description: What the control plane's store needs for planned workloads
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Lists the Namespace, ServiceAccount and WorkloadEntry objects of workloads that
    P(metalmesh.ambient.plan_workloads#filter) planned.
positional: namespace_labels
options:
  _input:
    description: Planned workloads.
    type: list
    elements: dict
    required: true
  namespace_labels:
    description: Labels of the namespaces.
    type: dict
    required: true
"""

EXAMPLES = r"""
objects: "{{ planned | metalmesh.ambient.workload_objects({}) }}"
"""

RETURN = r"""
_value:
  description: The objects.
  type: list
  elements: dict
"""

from typing import Any, Callable

from ansible_collections.metalmesh.ambient.plugins.module_utils import _workloads


class FilterModule:
    """The filter `workload_objects`."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file."""
        return {"workload_objects": _workloads.store_objects}
