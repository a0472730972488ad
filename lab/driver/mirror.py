"""From where, and with which settings, the host fetches Debian packages.

An image is built with the machine's own apt configuration: its mirror when that carries
Debian, its proxies, certificates and credentials.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lab.driver import host
from lab.driver.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FALLBACK = "http://deb.debian.org/debian"
"""Debian's own default, for a machine whose sources name no Debian mirror."""
_SCHEMES = ("http://", "https://", "file:", "copy:")
_RELEASES = ("bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable")
_PASSED_ON = ("Acquire::", "Dir::Etc::netrc")


def debian_mirror() -> str:
    """URI of the archive images are built from."""
    override = os.environ.get("LAB_DEBIAN_MIRROR")
    if override:
        return override.rstrip("/")
    etc = Path("/etc/apt")
    files = [*sorted((etc / "sources.list.d").glob("*.sources")), etc / "sources.list"]
    files += sorted((etc / "sources.list.d").glob("*.list"))
    return find_mirror(path.read_text() for path in files if path.exists()) or FALLBACK


def find_mirror(sources: Iterable[str]) -> str | None:
    """The first Debian main archive named in the text of some apt sources, of either format."""
    for text in sources:
        for uri, suites, components in _entries(text):
            if "main" in components and set(suites) & set(_RELEASES) and uri.startswith(_SCHEMES):
                return uri.rstrip("/")
    return None


def _entries(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (URI, suites, components) of every enabled binary source."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in lines:
        words = line.split("]")[-1].split() if "]" in line else line.split()[1:]
        if line.startswith(("deb ", "deb\t")) and len(words) >= 3:
            yield words[0], words[1:2], words[2:]
    for stanza in "\n".join(lines).split("\n\n"):
        fields = _fields(stanza)
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", []):
                yield uri, fields.get("suites", []), fields.get("components", [])


def _fields(stanza: str) -> dict[str, list[str]]:
    """Fields of a deb822 stanza, lower-cased; continuation lines belong to the field above."""
    fields: dict[str, list[str]] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in (" ", "\t"):
            fields.setdefault(name, []).extend(line.split())
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.lower()
            fields[name] = value.split()
    return fields


def machine_apt_options() -> list[str]:
    """The machine's settings for fetching, as lines of an apt.conf."""
    dump = host.run(["apt-config", "dump"], error=ImageError, remedy="install apt")
    options = []
    for line in dump.splitlines():
        key, _, value = line.partition(" ")
        if not key.startswith(_PASSED_ON) or value == '"";':
            continue
        if key.startswith("Dir::"):
            # apt in the new root reads the machine's credentials where they lie.
            value = '"/etc/apt/' + value.strip('";') + '";'
        options.append(f"{key} {value}")
    return options
