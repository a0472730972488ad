"""The ``nft`` command: load one transaction, read a table back, compare tables.

The kernel's own JSON is the only honest picture of a table: its text is normalised on print and
never equals what was loaded. :func:`fingerprint` therefore hashes the JSON without what changes by
itself (handles, counters). Every call may name a network namespace by descriptor.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import NetworkError
from metalmesh.net.netns import run_in_netns

if TYPE_CHECKING:
    from collections.abc import Iterable

#: seconds; a transaction of thousands of rules takes well below one
TIMEOUT_SECONDS: Final = 30.0
#: keys of nft's JSON that change without anybody touching the rules
_VOLATILE: Final = frozenset({"handle", "packets", "bytes", "metainfo", "index"})


def apply_ruleset(text: str, netns_fd: int | None = None) -> None:
    """Load one transaction: all of it is in force afterwards, or nothing changed."""
    done = _run(["nft", "-f", "-"], netns_fd, stdin=text)
    if done.returncode != 0:
        raise NetworkError(
            f"nft refused a transaction of {text.count(chr(10))} lines: {done.stderr.strip()}; "
            "does the kernel have nf_tables with inet, nat and ct?"
        )


def read_table(name: str, netns_fd: int | None = None, family: str = "inet") -> Any | None:
    """Return nft's JSON of one table; None when there is no such table."""
    done = _run(["nft", "-j", "list", "table", family, name], netns_fd)
    if done.returncode != 0:
        if "No such file or directory" in done.stderr:
            return None
        raise NetworkError(f"nft cannot list table {family} {name}: {done.stderr.strip()}")
    return _parse(done.stdout)


def list_tables(netns_fd: int | None = None) -> set[tuple[str, str]]:
    """Return (family, name) of every table."""
    done = _run(["nft", "-j", "list", "tables"], netns_fd)
    if done.returncode != 0:
        raise NetworkError(f"nft cannot list tables: {done.stderr.strip()}")
    items = _parse(done.stdout)["nftables"]
    return {(item["table"]["family"], item["table"]["name"]) for item in items if "table" in item}


def _parse(output: str) -> Any:
    """nft's JSON, which some versions spoil by a comment about a table's owner."""
    try:
        return json.loads(output)
    except ValueError as error:
        raise NetworkError(
            f"nft printed what is no JSON ({error}); does another program own a table here "
            "(flags owner)?"
        ) from error


def fingerprint(dump: Any | None) -> str:
    """Hash of a table's content as the kernel reports it; empty for a table that is not there."""
    if dump is None:
        return ""
    canonical = json.dumps(_stable(dump), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def table_fingerprint(name: str, netns_fd: int | None = None) -> str:
    """Fingerprint of the live table ``inet name``."""
    return fingerprint(read_table(name, netns_fd))


def fingerprints(names: Iterable[str], netns_fd: int | None = None) -> dict[str, str]:
    """Fingerprints of those of the ``inet`` tables that exist, by one call of ``nft``."""
    done = _run(["nft", "-j", "list", "ruleset", "inet"], netns_fd)
    if done.returncode != 0:
        raise NetworkError(f"nft cannot list the ruleset: {done.stderr.strip()}")
    wanted = set(names)
    parts: dict[str, list[Any]] = {}
    for item in _parse(done.stdout)["nftables"]:
        (kind, content), *_ = item.items()
        name = content.get("name" if kind == "table" else "table")
        if name in wanted:
            parts.setdefault(name, []).append(item)
    return {name: fingerprint(items) for name, items in parts.items()}


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        # a set's elements come in the order of the kernel's hash table
        return {
            key: _sorted(item) if key == "elem" else _stable(item)
            for key, item in value.items()
            if key not in _VOLATILE
        }
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return value


def _sorted(elements: Any) -> Any:
    if not isinstance(elements, list):
        return _stable(elements)
    return sorted((_stable(item) for item in elements), key=lambda item: json.dumps(item))


def _run(
    command: list[str], netns_fd: int | None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    try:
        return call() if netns_fd is None else run_in_netns(netns_fd, call)
    except FileNotFoundError:
        raise NetworkError("the command nft is missing: install the package nftables") from None
    except subprocess.TimeoutExpired:
        raise NetworkError(
            f"{' '.join(command)} did not finish in {TIMEOUT_SECONDS:g} s; is the kernel's "
            "nf_tables blocked by another writer?"
        ) from None
