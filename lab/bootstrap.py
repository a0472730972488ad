"""`make setup`: Debian packages and the virtual environment, only as far as they are missing.

Runs on the system's Python before anything is installed, so it uses the standard library only.
Packages come through apt and pip as the machine configures them; uv, which is much faster than
pip but does not read pip's configuration, is told what pip would do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from lab.packages import COMMANDS, KEYRING, KEYRING_PACKAGE

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / ".metalmesh-setup"
OLDEST_PYTHON = (3, 11)
# pip's setting -> uv's environment variable for it
_PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
    "proxy": "ALL_PROXY",
}
_COMMA_SEPARATED = {"UV_FIND_LINKS"}


def main() -> int:
    """Bring the machine up to date; say what is done, stay silent when nothing is."""
    if sys.version_info < OLDEST_PYTHON:
        print(
            f"setup: {sys.executable} is Python {sys.version.split()[0]}; 3.11 or newer is needed."
            " Name another by `make setup PYTHON=python3.11`.",
            file=sys.stderr,
        )
        return 1
    try:
        install_packages()
        install_environment()
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"setup: {command}: exit {error.returncode}; see its output above", file=sys.stderr)
        return 1
    return 0


def missing_packages() -> list[str]:
    """Debian packages that have to be installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = {package for name, package in COMMANDS.items() if not shutil.which(name, path=path)}
    if not Path(KEYRING).exists():
        missing.add(KEYRING_PACKAGE)
    if not (Path(sysconfig.get_path("stdlib")) / "ensurepip" / "__init__.py").exists():
        missing.add("python3-venv")
    return sorted(missing)


def install_packages() -> None:
    """Install what is missing, through apt."""
    missing = missing_packages()
    if not missing:
        return
    if os.geteuid():
        print(f"setup: install {' '.join(missing)}, or run this as root", file=sys.stderr)
        raise SystemExit(1)
    print(f"setup: installing {', '.join(missing)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "--quiet"], install):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)


def install_environment() -> None:
    """Make the virtual environment, unless it was made from this very description."""
    wanted = _fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted and _works():
        return
    python = VENV / "bin" / "python"
    if not _works():
        print(f"setup: making {VENV.name} with Python {sys.version.split()[0]}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    if not (VENV / "bin" / "uv").exists():
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    print("setup: installing metalmesh and its development tools", flush=True)
    subprocess.run(
        [VENV / "bin" / "uv", "pip", "install", "--quiet", "--editable", ".[dev]"],
        cwd=ROOT,
        env={**os.environ, **_uv_environment(python), "VIRTUAL_ENV": str(VENV)},
        check=True,
    )
    STAMP.write_text(wanted)


def _fingerprint() -> str:
    """Changes when the environment has to be made anew."""
    content = (ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(content + str(ROOT).encode()).hexdigest()


def _works() -> bool:
    """Whether the environment's Python starts: the system's may have been replaced."""
    python = VENV / "bin" / "python"
    if not python.exists():
        return False
    return subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0


def _uv_environment(python: Path) -> dict[str, str]:
    settings = uv_settings(_pip_configuration(python))
    links = present_links(settings.pop("UV_FIND_LINKS", ""))
    return {**settings, "UV_FIND_LINKS": links} if links else settings


def _pip_configuration(python: Path) -> str:
    listing = subprocess.run(
        [python, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    return listing.stdout


def uv_settings(pip_configuration: str) -> dict[str, str]:
    """Translate the output of `pip config list` into uv's environment.

    Lines look like ``global.index-url='https://…'``; the environment's, ``:env:.…``, come first
    there and override files. Values of several words are lists.
    """
    settings: dict[str, str] = {"UV_LINK_MODE": "copy", "UV_SYSTEM_CERTS": "1"}
    found: dict[str, str] = {}
    for line in pip_configuration.splitlines():
        key, _, quoted = line.partition("=")
        section, _, name = key.rpartition(".")
        value = quoted.strip().strip("'\"").replace("\\n", " ").strip()
        if name in _PIP_TO_UV and value and (section == ":env:" or name not in found):
            found[name] = value
    for name, value in found.items():
        variable = _PIP_TO_UV[name]
        separator = "," if variable in _COMMA_SEPARATED else " "
        settings[variable] = separator.join(value.split())
    return settings


def present_links(find_links: str) -> str:
    """Those of a comma-separated list that are there: pip passes over a missing directory, uv ends.

    What has a scheme is not looked for.
    """
    links = find_links.split(",")
    return ",".join(link for link in links if "://" in link or Path(link).is_dir())


if __name__ == "__main__":
    raise SystemExit(main())
