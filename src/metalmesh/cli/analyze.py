"""``metalmesh analyze``: errors, and what is suspicious, in files or in what is in force."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from metalmesh.cli import remote, resources
from metalmesh.cli.output import print_data
from metalmesh.controlplane.analyze import Level, analyze
from metalmesh.controlplane.world import make_world
from metalmesh.errors import MetalmeshError

if TYPE_CHECKING:
    import argparse

_THRESHOLDS: Final = {level.word: level for level in Level}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("files", nargs="*", metavar="FILE|DIR", help="as --resources")
    parser.add_argument("-n", "--namespace", default="", help="only findings of this namespace")
    parser.add_argument("-o", "--output", choices=("log", "json", "yaml"), default="log")
    parser.add_argument(
        "--failure-threshold", choices=_THRESHOLDS, default="Error",
        help="the least finding that makes the exit status 1; default: %(default)s",
    )  # fmt: skip
    resources.add_arguments(parser)
    remote.describe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the findings, the worst first."""
    args.resources = [*(args.resources or ()), *args.files]
    loaded = resources.load(args)
    world = make_world(loaded.admission.objects, loaded.computation, loaded.options)
    found = analyze(loaded.admission, loaded.computation.conditions, world, loaded.options)
    if args.namespace:
        mine = f" {args.namespace}/"
        found = [item for item in found if mine in item.object or not item.object]
    if args.output == "log":
        sys.stdout.write("".join(f"{item}\n" for item in found) or "No validation issues found.\n")
    else:
        print_data([item.to_dict() for item in found], args.output)
    return int(any(item.level >= _THRESHOLDS[args.failure_threshold] for item in found))


def run_elsewhere(target: argparse.Namespace, args: argparse.Namespace, words: list[str]) -> int:
    """What is in force there; files are this machine's and need no other."""
    if args.files or args.resources:
        raise MetalmeshError("files are analyzed here: leave --host and -i out")
    return remote.run(target, words)
