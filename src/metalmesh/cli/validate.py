"""``metalmesh validate FILE|DIR...``: check resources as the control plane would."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from metalmesh.constants import ROOT_NAMESPACE
from metalmesh.controlplane.admission import Scan, admit
from metalmesh.controlplane.compute import ComputeOptions, compute
from metalmesh.controlplane.store import SUFFIXES
from metalmesh.errors import ResourceError
from metalmesh.model.resources import ParsedObject, parse_documents
from metalmesh.render.wds import MeshOptions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

    from metalmesh.controlplane.snapshot import Admission, Condition

_Found = tuple[ParsedObject | ResourceError, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("paths", nargs="+", metavar="FILE|DIR", help="- is standard input")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--root-namespace", default=ROOT_NAMESPACE)


def run(args: argparse.Namespace) -> int:
    """Print one line per error, then warnings; 1 when there is an error."""
    files: dict[str, _Found] = {}
    unreadable: dict[str, str] = {}
    for path in _expand(args.paths, unreadable):
        _read(path, files, unreadable)
    admission = admit(Scan(files, unreadable), {}, datetime.now(UTC).isoformat())
    options = ComputeOptions(mesh=MeshOptions(root_namespace=args.root_namespace))
    conditions = compute(admission.objects, options).conditions
    if args.output == "json":
        _print_json(admission, conditions)
    else:
        _print_text(admission, conditions)
    return 1 if admission.errors else 0


def _expand(paths: Iterable[str], unreadable: dict[str, str]) -> Iterator[str]:
    """The files meant: a directory stands for its YAML files, hidden ones excluded."""

    def note(error: OSError) -> None:
        unreadable[str(error.filename)] = f"cannot be read: {error.strerror}"

    for path in paths:
        if not Path(path).is_dir():
            yield path
            continue
        for directory, below, names in os.walk(path, onerror=note):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    yield str(Path(directory) / name)


def _read(path: str, files: dict[str, _Found], unreadable: dict[str, str]) -> None:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        unreadable[path] = f"cannot be read: {error.strerror}"
        return
    try:
        files[path] = tuple(parse_documents(data.decode(), path))
    except UnicodeDecodeError as error:
        files[path] = (ResourceError(path, "", "", f"not UTF-8 ({error.reason})"),)


def _warnings(conditions: Mapping[str, tuple[Condition, ...]]) -> Iterator[tuple[str, Condition]]:
    """Conditions worth a user's attention: refused, or accepted with a reservation."""
    for key, found in sorted(conditions.items()):
        for condition in found:
            if not condition.status or condition.reason != "Accepted":
                yield key, condition


def _print_text(admission: Admission, conditions: Mapping[str, tuple[Condition, ...]]) -> None:
    for error in admission.errors:
        sys.stdout.write(f"{error}\n")
    for key, condition in _warnings(conditions):
        source = admission.objects[key].source
        sys.stdout.write(
            f"{source}: {key}: warning: {condition.type} {condition.reason}: {condition.message}\n"
        )
    if not admission.errors:
        sys.stdout.write(f"{len(admission.objects)} objects are valid\n")


def _print_json(admission: Admission, conditions: Mapping[str, tuple[Condition, ...]]) -> None:
    result = {
        "valid": not admission.errors,
        "objects": sorted(admission.objects),
        "errors": [
            {
                "source": error.source,
                "object": error.obj,
                "field": error.field,
                "message": error.message,
            }
            for error in admission.errors
        ],
        "warnings": [
            {"source": admission.objects[key].source, "object": key, **condition.to_dict()}
            for key, condition in _warnings(conditions)
        ],
    }
    sys.stdout.write(json.dumps(result) + "\n")
