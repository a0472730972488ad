# SPDX-License-Identifier: Apache-2.0

"""Lookup that reads mesh resources."""

from __future__ import annotations

DOCUMENTATION = r"""
name: resources
short_description: Read mesh resources from objects and files
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Takes objects as they are, and reads the documents of YAML files; a directory stands for the
    files C(*.yaml) and C(*.yml) in it.
options:
  _terms:
    description: Objects, and paths of files or directories on the controller.
    required: true
    type: list
    elements: raw
  base_dir:
    description: Where relative paths begin.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Put the policies of a directory into the store
  metalmesh.ambient.resource:
    definition: "{{ query('metalmesh.ambient.resources', 'policies', base_dir=inventory_dir) }}"
"""

RETURN = r"""
_raw:
  description: The objects.
  type: list
  elements: dict
"""

import os
from pathlib import Path
from typing import Any, Iterator

import yaml
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase


def files_of(path: Path) -> list[Path]:
    """Return the file, or the YAML files of the directory."""
    if path.is_dir():
        return sorted(item for item in path.iterdir() if item.suffix in {".yaml", ".yml"})
    return [path]


def documents_of(path: Path) -> Iterator[Any]:
    """Yield the documents of a file; empty ones do not count."""
    try:
        text = path.read_text(encoding="utf-8")
        yield from (item for item in yaml.safe_load_all(text) if item is not None)
    except OSError as error:
        raise AnsibleLookupError(f"{path}: {error.strerror}; mesh_resources names it") from error
    except yaml.YAMLError as error:
        raise AnsibleLookupError(f"{path}: not valid YAML: {error}") from error


class LookupModule(LookupBase):
    """The lookup `resources`."""

    def run(self, terms: list[Any], variables: Any = None, **kwargs: Any) -> list[Any]:
        """Return the objects of all terms in order."""
        self.set_options(var_options=variables, direct=kwargs)
        base = Path(os.path.expanduser(self.get_option("base_dir")))
        found: list[Any] = []
        for term in terms:
            if isinstance(term, str):
                for path in files_of(base / Path(term).expanduser()):
                    found += documents_of(path)
            else:
                found.append(term)
        return found
