"""The directory store: YAML files below one directory, read incrementally.

A file is read again only when its identity, size or times changed. What cannot be read is reported
and never mistaken for what was deleted.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from metalmesh.controlplane.admission import Scan
from metalmesh.errors import ResourceError
from metalmesh.model.resources import parse_documents

if TYPE_CHECKING:
    from pathlib import Path

    from metalmesh.model.resources import ParsedObject

SUFFIXES: Final = (".yaml", ".yml")
_Signature = tuple[int, int, int, int, int]
_Found = tuple["ParsedObject | ResourceError", ...]


class DirectoryStore:
    """Reads a store; keeps what it parsed between readings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._parsed: dict[str, tuple[_Signature, _Found]] = {}
        #: directories seen by the last scan, for whoever watches them
        self.directories: tuple[str, ...] = ()

    def scan(self) -> Scan:
        """Read what is there now; paths are relative to the store's directory."""
        unreadable: dict[str, str] = {}
        signatures: dict[str, _Signature] = {}
        directories: list[str] = []
        pending = [""]
        while pending:
            relative = pending.pop()
            directories.append(relative)
            try:
                pending += self._list(relative, signatures, unreadable)
            except OSError as error:
                if relative and isinstance(error, FileNotFoundError):
                    continue  # removed while we were reading: gone
                what = "" if relative else f"the store {self.directory} "
                unreadable[relative or "."] = f"{what}cannot be read: {error.strerror}"
        files = {}
        for source, signature in signatures.items():
            found = self._parse(source, signature, unreadable)
            if found is not None:
                files[source] = found
        for source in self._parsed.keys() - signatures.keys():
            del self._parsed[source]
        self.directories = tuple(directories)
        return Scan(files, unreadable)

    def _list(
        self, relative: str, signatures: dict[str, _Signature], unreadable: dict[str, str]
    ) -> list[str]:
        """One directory: note its YAML files, return its sub-directories."""
        below = []
        with os.scandir(self.directory / relative) as entries:
            for entry in entries:
                # editors and atomic writers use hidden files on the way
                if entry.name.startswith("."):
                    continue
                path = f"{relative}/{entry.name}" if relative else entry.name
                try:
                    if entry.is_dir():
                        below.append(path)
                    elif entry.name.endswith(SUFFIXES):
                        signatures[path] = _signature(entry.stat())
                except FileNotFoundError:
                    continue  # removed, or a link to nowhere
                except OSError as error:
                    unreadable[path] = f"cannot be read: {error.strerror}"
        return below

    def _parse(
        self, source: str, signature: _Signature, unreadable: dict[str, str]
    ) -> _Found | None:
        known = self._parsed.get(source)
        if known is not None and known[0] == signature:
            return known[1]
        try:
            text = (self.directory / source).read_bytes().decode()
        except FileNotFoundError:
            return None
        except OSError as error:
            unreadable[source] = f"cannot be read: {error.strerror}"
            return None
        except UnicodeDecodeError as error:
            found: _Found = (ResourceError(source, "", "", f"not UTF-8 ({error.reason})"),)
        else:
            found = tuple(parse_documents(text, source))
        self._parsed[source] = (signature, found)
        return found


def _signature(stat: os.stat_result) -> _Signature:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
