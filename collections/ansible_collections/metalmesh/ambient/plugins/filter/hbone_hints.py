# SPDX-License-Identifier: Apache-2.0

"""Filter that points out policies which block the mesh itself."""

from __future__ import annotations

DOCUMENTATION = r"""
name: hbone_hints
short_description: NetworkPolicy objects that block traffic inside the mesh
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Connections inside the mesh arrive on port 15008 whatever port the application listens on. Lists
    the NetworkPolicy objects that admit ports and leave out this one, which is rarely meant.
options:
  _input:
    description: Objects of any kind.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
hints: "{{ mesh_resources | metalmesh.ambient.hbone_hints }}"
"""

RETURN = r"""
_value:
  description: One line per policy and direction.
  type: list
  elements: str
"""

from typing import Any, Callable

from ansible_collections.metalmesh.ambient.plugins.module_utils import _hints


class FilterModule:
    """The filter `hbone_hints`."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters of this file."""
        return {"hbone_hints": _hints.hbone_hints}
