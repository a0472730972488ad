#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

"""Several files of a node in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Several files, directories and links of a node in one round trip
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Brings a set of directories, files and links to the wanted content, owner and mode, and removes
    what is listed as absent or surplus.
  - A round trip to a node costs far more than a file; a role that writes its configuration, its
    unit and its directories with this module needs one of them.
  - Every file is replaced atomically, and only after its O(files[].validate) command accepted it.
    Nothing is written at all unless every file passed.
options:
  directories:
    description: Directories, made in this order before any file.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      owner:
        description: User that owns it.
        type: str
        default: root
      group:
        description: Group that owns it.
        type: str
        default: root
      mode:
        description: Octal mode, as a quoted string.
        type: str
        default: '0755'
  files:
    description: Regular files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      content:
        description:
          - The text of the file. A role gives C(lookup('ansible.builtin.template', ...)) here.
        type: str
        required: true
      owner:
        description: User that owns it.
        type: str
        default: root
      group:
        description: Group that owns it.
        type: str
        default: root
      mode:
        description: Octal mode, as a quoted string.
        type: str
        default: '0644'
      secret:
        description:
          - Keep the content out of the diff. Give the task C(no_log) as well, because Ansible logs
            the arguments of modules.
        type: bool
        default: false
      keep:
        description:
          - Write the file only when nothing is at its path; what is there stays as it is. For the
            state of a machine before it was changed.
        type: bool
        default: false
      validate:
        description:
          - Command that accepts the new content; V(%s) stands for the path of a temporary copy of
            the same name.
          - In check mode it runs when its program is there already.
        type: str
  links:
    description: Symbolic links.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path of the link.
        type: path
        required: true
      target:
        description: What it points to.
        type: str
        required: true
  absent:
    description: Paths at which nothing is left; directories go with their content.
    type: list
    elements: path
    default: []
  remove_empty:
    description: Remove the directories that O(absent) and O(purge) leave empty.
    type: bool
    default: false
  purge:
    description: Directories in which only what O(files) and O(links) list may match a pattern.
    type: list
    elements: dict
    default: []
    suboptions:
      directory:
        description: Absolute path, or a pattern that may match several directories.
        type: path
        required: true
      patterns:
        description: Shell patterns of file names.
        type: list
        elements: str
        required: true
      containing:
        description: Only files with this text are surplus; those of other tools stay.
        type: str
        default: ''
extends_documentation_fragment:
  - metalmesh.ambient._attributes
"""

EXAMPLES = r"""
- name: Configure the service
  metalmesh.ambient.files:
    directories:
      - path: /etc/metalmesh
    files:
      - path: /etc/metalmesh/ztunnel.yaml
        content: "{{ lookup('ansible.builtin.template', 'etc/metalmesh/ztunnel.yaml.j2') }}"
        validate: /opt/metalmesh/current/bin/metalmesh check-config %s

- name: Keep only the listed workloads
  metalmesh.ambient.files:
    files: []
    purge:
      - directory: /etc/metalmesh/workloads
        patterns: ['*.yaml']
"""

RETURN = r"""
changed_paths:
  description: What was changed, or would be in check mode; what was removed as well.
  type: list
  elements: str
  returned: always
  sample: [/etc/metalmesh/ztunnel.yaml]
removed_paths:
  description: What was removed, or would be in check mode.
  type: list
  elements: str
  returned: always
  sample: []
"""

import glob
import os
import shlex
import shutil
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.metalmesh.ambient.plugins.module_utils import _io, _plan

OWNER_OPTIONS: dict[str, Any] = {
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
}

ARGUMENT_SPEC: dict[str, Any] = {
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "mode": {"type": "str", "default": "0755"},
            **OWNER_OPTIONS,
        },
    },
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True},
            "mode": {"type": "str", "default": "0644"},
            "secret": {"type": "bool", "default": False},
            "keep": {"type": "bool", "default": False},
            "validate": {"type": "str"},
            **OWNER_OPTIONS,
        },
    },
    "links": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "target": {"type": "str", "required": True},
        },
    },
    "absent": {"type": "list", "elements": "path", "default": []},
    "remove_empty": {"type": "bool", "default": False},
    "purge": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "directory": {"type": "path", "required": True},
            "patterns": {"type": "list", "elements": "str", "required": True},
            "containing": {"type": "str", "default": ""},
        },
    },
}


def parse_mode(path: str, mode: str) -> int:
    """Return the number of an octal mode."""
    try:
        return int(mode, 8)
    except ValueError:
        raise _io.ModuleError(
            f"{path}: mode {mode!r} is not octal", "Write it as a quoted string such as '0644'"
        ) from None


def wanted_attributes(item: dict[str, Any]) -> dict[str, Any]:
    """Return ``item`` with its mode, user and group as numbers."""
    return {
        **item,
        "mode": parse_mode(item["path"], item["mode"]),
        "uid": _io.uid_of(item["owner"]),
        "gid": _io.gid_of(item["group"]),
    }


def plan(params: dict[str, Any]) -> list[_plan.Change]:
    """Compare the machine with the arguments; return the changes in the order of applying."""
    changes: list[_plan.Change | None] = [
        _plan.plan_directory(item["path"], _io.read_state(item["path"]), wanted_attributes(item))
        for item in params["directories"]
    ]
    changes += [
        _plan.plan_file(item["path"], _io.read_state(item["path"]), wanted_attributes(item))
        for item in params["files"]
        if not (item["keep"] and os.path.lexists(item["path"]))
    ]
    changes += [
        _plan.plan_link(item["path"], _io.read_state(item["path"]), item["target"])
        for item in params["links"]
    ]
    kept = {item["path"] for item in params["files"] + params["links"]}
    removals = list(params["absent"])
    for purge in params["purge"]:
        for directory in sorted(glob.glob(purge["directory"])):
            found = _plan.surplus(directory, os.listdir(directory), purge["patterns"], kept)
            removals += [path for path in found if contains(path, purge["containing"])]
    changes += [_plan.plan_removal(path, _io.read_state(path)) for path in removals]
    return [change for change in changes if change is not None]


def contains(path: str, text: str) -> bool:
    """Return whether a file holds ``text``; every file holds the empty text."""
    return not text or text in str(_io.read_state(path).get("content", ""))


def validate(module: AnsibleModule, item: dict[str, Any]) -> None:
    """Run the validation command of a file on a copy of its new content."""
    if "%s" not in item["validate"]:
        raise _io.ModuleError(f"{item['path']}: the validate command has no %s for the file's path")
    program = shlex.split(item["validate"])[0]
    if module.check_mode and shutil.which(program) is None:
        return
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as folder:
        copy = os.path.join(folder, os.path.basename(item["path"]))
        _io.write_text(copy, item["content"], mode=0o600)
        code, out, err = module.run_command(item["validate"].replace("%s", shlex.quote(copy)))
    if code != 0:
        raise _io.ModuleError(
            f"{item['path']}: the new content was refused: {(err or out).strip()}",
            f"Nothing was changed. The check was: {item['validate']}",
        )


def apply(params: dict[str, Any], changes: list[_plan.Change]) -> None:
    """Carry out the plan."""
    items = {
        item["path"]: item for kind in ("directories", "files", "links") for item in params[kind]
    }
    for change in changes:
        item = items.get(change.path, {})
        if change.action in {"remove", "link"}:
            _io.remove(change.path)
        if change.action == "remove" and params["remove_empty"]:
            _io.remove_if_empty(os.path.dirname(change.path))
        if change.action == "link":
            os.symlink(item["target"], change.path)
        elif change.action == "directory":
            os.makedirs(change.path, exist_ok=True)
            _io.ensure_owner(change.path, item["owner"], item["group"])
            os.chmod(change.path, parse_mode(change.path, item["mode"]))
        elif change.action in {"write", "attributes"}:
            mode = parse_mode(change.path, item["mode"])
            if os.path.islink(change.path):
                _io.remove(change.path)
            _io.write_text(
                change.path, item["content"], owner=item["owner"], group=item["group"], mode=mode
            )


def run(module: AnsibleModule) -> dict[str, Any]:
    """Plan, check, apply; return the module's result."""
    changes = plan(module.params)
    written = {change.path for change in changes if change.action == "write"}
    for item in module.params["files"]:
        if item["validate"] and item["path"] in written:
            validate(module, item)
    if not module.check_mode:
        apply(module.params, changes)
    return {
        "changed": bool(changes),
        "changed_paths": [change.path for change in changes],
        "removed_paths": [change.path for change in changes if change.action == "remove"],
        "diff": [change.to_diff() for change in changes],
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        result = run(module)
    except _io.ModuleError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or 'file'}: {error.strerror}")
    else:
        module.exit_json(**result)


if __name__ == "__main__":
    main()
