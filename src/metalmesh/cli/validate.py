"""``metalmesh validate FILE|DIR...``: check resources as the control plane would."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from metalmesh.cli.resources import load_files
from metalmesh.constants import ROOT_NAMESPACE
from metalmesh.controlplane.compute import ComputeOptions
from metalmesh.render.wds import MeshOptions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from metalmesh.controlplane.snapshot import Admission, Condition


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("paths", nargs="+", metavar="FILE|DIR", help="- is standard input")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--root-namespace", default=ROOT_NAMESPACE)


def run(args: argparse.Namespace) -> int:
    """Print one line per error, then warnings; 1 when there is an error."""
    options = ComputeOptions(mesh=MeshOptions(root_namespace=args.root_namespace))
    loaded = load_files(args.paths, options)
    admission, conditions = loaded.admission, loaded.computation.conditions
    if args.output == "json":
        _print_json(admission, conditions)
    else:
        _print_text(admission, conditions)
    return 1 if admission.errors else 0


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
