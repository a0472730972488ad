# SPDX-License-Identifier: Apache-2.0
# PRIVATE to the collection metalmesh.ambient.

"""Release archives: a ready Python environment for nodes, made on the controller.

A release is what ``python -m venv`` and an installer would leave in ``/opt/metalmesh/NAME``: links
to the node's Python, the packages, the command. It is made for another Python and another machine
than the controller's, from wheels only, so a node needs neither an index nor an installer.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from typing import Iterator

#: Part of every digest: raise it when the layout of the archive changes.
LAYOUT = "4"

#: Debian 12 has glibc 2.36; wheels for 2.28 and older run on every machine we accept.
PLATFORMS = {
    "x86_64": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "aarch64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
}

#: what a build of the source tree reads
SOURCE_FILES = ("pyproject.toml", "README.md", "LICENSE")

LAUNCHER = """\
#!{root}/{name}/bin/python3 -I
import sys

from metalmesh.cli.main import main

sys.exit(main())
"""

PYVENV = """\
home = /usr/bin
include-system-site-packages = false
version = {python}
"""


def source_digest(directory: str) -> str:
    """Return a digest of everything that a wheel built from ``directory`` depends on."""
    digest = hashlib.sha256()
    for path in sorted(_source_paths(directory)):
        digest.update(os.path.relpath(path, directory).encode() + b"\0")
        with open(path, "rb") as handle:
            digest.update(hashlib.sha256(handle.read()).digest())
    return digest.hexdigest()


def _source_paths(directory: str) -> Iterator[str]:
    for name in SOURCE_FILES:
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            yield path
    for folder, folders, names in os.walk(os.path.join(directory, "src")):
        folders[:] = [name for name in folders if not name.endswith((".egg-info", "__pycache__"))]
        for name in names:
            if not name.endswith(".pyc"):
                yield os.path.join(folder, name)


def release_digest(package: bytes, python: str, architecture: str) -> str:
    """Return the digest that names a release: of the wheel or requirement and of the target."""
    digest = hashlib.sha256()
    for part in (LAYOUT.encode(), package, python.encode(), architecture.encode()):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def install_commands(
    installer: list[str],
    kind: str,
    wheel: str,
    target: str,
    python: str,
    architecture: str,
    index: str,
) -> list[str]:
    """Return the command that unpacks ``wheel`` and what it needs for another Python.

    ``kind`` is ``uv`` or ``pip``; both know how to install for a foreign platform from wheels only.
    """
    common = ["--quiet", "--target", target, "--python-version", python, "--only-binary", ":all:"]
    if index:
        common += ["--index-url", index]
    if kind == "uv":
        platform = f"{architecture}-manylinux_2_28"
        return [*installer, "pip", "install", *common, "--python-platform", platform, wheel]
    platforms = [word for tag in PLATFORMS[architecture] for word in ("--platform", tag)]
    return [*installer, "install", "--no-compile", *common, *platforms, wheel]


def _entry(name: str, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """Return a tar entry that is the same whoever makes it, and whenever."""
    entry = tarfile.TarInfo(name)
    entry.mode, entry.type = mode, kind
    return entry


def _add_text(archive: tarfile.TarFile, name: str, mode: int, text: str) -> None:
    entry = _entry(name, mode)
    entry.size = len(text.encode())
    archive.addfile(entry, io.BytesIO(text.encode()))


def write_archive(path: str, packages: str, name: str, python: str, root: str) -> None:
    """Write the release ``name`` with the content of the directory ``packages``."""
    site = f"lib/python{python}/site-packages"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for link in ("python3", "python", f"python{python}"):
            entry = _entry(f"bin/{link}", 0o777, tarfile.SYMTYPE)
            entry.linkname = f"/usr/bin/python{python}"
            archive.addfile(entry)
        _add_text(archive, "pyvenv.cfg", 0o644, PYVENV.format(python=python))
        _add_text(archive, "bin/metalmesh", 0o755, LAUNCHER.format(root=root, name=name))
        for folder, folders, names in os.walk(packages):
            skipped = {"__pycache__", "bin"} if folder == packages else {"__pycache__"}
            folders[:] = sorted(item for item in folders if item not in skipped)
            for file in sorted(names):
                full = os.path.join(folder, file)
                relative = os.path.relpath(full, packages)
                entry = _entry(f"{site}/{relative}", 0o755 if os.access(full, os.X_OK) else 0o644)
                entry.size = os.path.getsize(full)
                with open(full, "rb") as handle:
                    archive.addfile(entry, handle)


def distribution_version(packages: str, name: str = "metalmesh") -> str:
    """Return the version of ``name`` installed in the directory ``packages``, or ''."""
    suffix = ".dist-info"
    for entry in os.listdir(packages):
        if entry.startswith(f"{name}-") and entry.endswith(suffix):
            return entry[len(name) + 1 : -len(suffix)]
    return ""


__all__ = [
    "PLATFORMS",
    "distribution_version",
    "install_commands",
    "release_digest",
    "source_digest",
    "write_archive",
]
