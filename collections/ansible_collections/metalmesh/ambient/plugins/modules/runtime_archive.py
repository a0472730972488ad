#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

"""Make the release archive that nodes unpack."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_archive
short_description: Make the release archive of metalmesh that nodes unpack
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Runs on the controller. Collects the wheels of metalmesh and of what it depends on for the
    Python and the architecture of a node, and packs them into one archive that is a ready virtual
    environment, so that a node needs neither an index nor an installer.
  - Archives are kept in O(cache_dir) under the digest of what they were made of, and made once.
options:
  package:
    description:
      - What to install. A directory is built as a wheel; a path of a wheel is taken as it is;
        anything else is a requirement such as V(metalmesh==0.1.0) that is fetched from the index.
    type: str
    required: true
  python_version:
    description: Version of the node's Python, such as V(3.13).
    type: str
    required: true
  architecture:
    description: Architecture of the node.
    type: str
    choices: [x86_64, aarch64]
    required: true
  cache_dir:
    description: Directory on the controller that keeps wheels and archives.
    type: path
    required: true
  index_url:
    description: Package index; left out, the installer's own configuration decides.
    type: str
    default: ''
  root:
    description: Directory below which a node unpacks its releases.
    type: path
    default: /opt/metalmesh
extends_documentation_fragment:
  - metalmesh.ambient._attributes
attributes:
  check_mode:
    support: partial
    description:
      - The archive is made in check mode as well, because only then is it known what would be
        installed. It is a cache and counts as no change.
  diff_mode:
    support: none
    description: A cache has no differences worth showing.
"""

EXAMPLES = r"""
- name: Make the release
  metalmesh.ambient.runtime_archive:
    package: metalmesh==0.1.0
    python_version: "3.13"
    architecture: x86_64
    cache_dir: ~/.cache/metalmesh
  delegate_to: localhost
"""

RETURN = r"""
path:
  description: The archive, on the controller.
  type: str
  returned: always
name:
  description: Version and digest; the name of its directory on nodes.
  type: str
  returned: always
  sample: 0.1.0-1a2b3c4d
dir:
  description: The directory on nodes.
  type: str
  returned: always
  sample: /opt/metalmesh/0.1.0-1a2b3c4d
"""

import fcntl
import glob
import json
import os
import shutil
import sys
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.metalmesh.ambient.plugins.module_utils import _release
from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError

#: archives in the cache; several mixtures of Python and architecture may be in use
ARCHIVES_KEPT = 12


def find_installer() -> tuple[str, list[str]]:
    """Return uv (much faster) or pip, whichever belongs to this Python."""
    beside = os.path.join(os.path.dirname(sys.executable), "uv")
    program = beside if os.access(beside, os.X_OK) else shutil.which("uv")
    if program:
        return "uv", [program]
    return "pip", [sys.executable, "-m", "pip"]


def must_run(module: AnsibleModule, command: list[str], purpose: str) -> None:
    """Run a command on the controller or say what it was good for."""
    code, out, err = module.run_command(command)
    if code != 0:
        raise ModuleError(
            f"{purpose} failed: {(err or out).strip()}",
            "It needs uv or pip beside the Python that runs Ansible, and an index with the wheels"
            " (index_url); the command was: " + " ".join(command),
        )


def build_wheel(module: AnsibleModule, directory: str, cache: str) -> str:
    """Build the wheel of a source tree once; return its path."""
    folder = os.path.join(cache, "wheels", _release.source_digest(directory)[:16])
    if not glob.glob(os.path.join(folder, "*.whl")):
        kind, installer = find_installer()
        verb = ["build", "--wheel", "--quiet", "--out-dir"]
        if kind == "pip":
            verb = ["wheel", "--no-deps", "--quiet", "--wheel-dir"]
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            source = os.path.join(scratch, "source")
            copy_source(directory, source)
            command = [*installer, *verb, os.path.join(scratch, "out"), source]
            must_run(module, command, f"building the wheel of {directory}")
            wheels = glob.glob(os.path.join(scratch, "out", "*.whl"))
            os.makedirs(folder, exist_ok=True)
            shutil.copy(wheels[0], folder)
    return glob.glob(os.path.join(folder, "*.whl"))[0]


def copy_source(directory: str, target: str) -> None:
    """Copy what a build needs, so that it leaves nothing behind in the source tree."""
    os.makedirs(target)
    for name in _release.SOURCE_FILES:
        if os.path.isfile(os.path.join(directory, name)):
            shutil.copy(os.path.join(directory, name), target)
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(os.path.join(directory, "src"), os.path.join(target, "src"), ignore=ignored)


def package_bytes(package: str) -> bytes:
    """Return what identifies the package: the wheel itself or the requirement's text."""
    if not package.endswith(".whl"):
        return package.encode()
    with open(package, "rb") as handle:
        return handle.read()


def make_archive(module: AnsibleModule, package: str, digest: str) -> dict[str, Any]:
    """Unpack the wheels for the node's Python and pack them as a release."""
    params = module.params
    folder = os.path.join(params["cache_dir"], "releases")
    os.makedirs(folder, exist_ok=True)
    kind, installer = find_installer()
    with tempfile.TemporaryDirectory(dir=params["cache_dir"]) as scratch:
        packages = os.path.join(scratch, "packages")
        command = _release.install_commands(
            installer, kind, package, packages, params["python_version"], params["architecture"],
            params["index_url"],
        )  # fmt: skip
        must_run(module, command, f"collecting wheels for Python {params['python_version']}")
        version = _release.distribution_version(packages)
        if not version:
            raise ModuleError(
                f"{package} does not contain metalmesh", "Set package to one that does"
            )
        name = f"{version}-{digest[:8]}"
        draft = os.path.join(scratch, "release.tar.gz")
        _release.write_archive(draft, packages, name, params["python_version"], params["root"])
        path = os.path.join(folder, f"{digest[:16]}.tar.gz")
        os.rename(draft, path)
    made = {"path": path, "name": name, "dir": os.path.join(params["root"], name)}
    with open(os.path.join(folder, f"{digest[:16]}.json"), "w", encoding="utf-8") as handle:
        json.dump(made, handle)
    forget_old(folder)
    return made


def forget_old(folder: str) -> None:
    """Keep the newest archives of the cache; a checkout that changes makes a new one each time."""
    known = sorted(glob.glob(os.path.join(folder, "*.json")), key=os.path.getmtime, reverse=True)
    for path in known[ARCHIVES_KEPT:]:
        os.unlink(path)
        archive = f"{path.removesuffix('.json')}.tar.gz"
        if os.path.exists(archive):
            os.unlink(archive)


def run(module: AnsibleModule) -> dict[str, Any]:
    """Find the archive in the cache or make it."""
    params = module.params
    os.makedirs(params["cache_dir"], mode=0o755, exist_ok=True)
    # Nodes of one play ask at the same time; the first builds, the others wait and find it.
    with open(os.path.join(params["cache_dir"], "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        package = params["package"]
        if os.path.isdir(package):
            package = build_wheel(module, package, params["cache_dir"])
        digest = _release.release_digest(
            package_bytes(package) + params["root"].encode(),
            params["python_version"],
            params["architecture"],
        )
        known = os.path.join(params["cache_dir"], "releases", f"{digest[:16]}.json")
        if not os.path.isfile(known):
            return make_archive(module, package, digest)
        os.utime(known)
        with open(known, encoding="utf-8") as handle:
            return dict(json.load(handle))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "package": {"type": "str", "required": True},
            "python_version": {"type": "str", "required": True},
            "architecture": {
                "type": "str",
                "required": True,
                "choices": sorted(_release.PLATFORMS),
            },
            "cache_dir": {"type": "path", "required": True},
            "index_url": {"type": "str", "default": ""},
            "root": {"type": "path", "default": "/opt/metalmesh"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except ModuleError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['cache_dir']}: {error.strerror}")
    else:
        module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
