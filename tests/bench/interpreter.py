"""The Python that nodes run: the lab image's, not the one that runs the tests.

An interpreter built without profile-guided optimization costs half as much again, and OpenSSL 3.5
a third less than 3.0; so figures are worth something only for the pair that Debian ships.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from lab.driver import image

_REPORT = "import ssl, sys; print(sys.version.split()[0], ssl.OPENSSL_VERSION)"


def node_python(release: str, directory: Path) -> str:
    """A command that runs the Python of a lab image here, with its own libraries.

    The image is built when the cache has none. The loader is called by name, so that nothing
    needs to change root; what the program imports beyond the standard library must be pure.
    """
    root = image.ensure(release, print)
    (loader,) = root.glob("usr/lib*/ld-linux-*.so.*")
    libraries = ":".join(map(str, root.glob("usr/lib/*-linux-gnu")))
    program = sorted(root.glob("usr/bin/python3.[0-9][0-9]"))[-1]
    line = shlex.join([str(loader), "--library-path", libraries, str(program)])
    script = directory / f"python-{release}"
    script.write_text(f'#!/bin/sh\nPYTHONHOME={shlex.quote(str(root / "usr"))} exec {line} "$@"\n')
    script.chmod(0o755)
    return str(script)


def describe(python: str) -> str:
    """Its version and its OpenSSL's."""
    return subprocess.run(
        [python, "-c", _REPORT], check=True, capture_output=True, text=True
    ).stdout.strip()
