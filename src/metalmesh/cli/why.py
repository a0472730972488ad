"""``metalmesh why SRC DST:PORT``: what becomes of a connection, and which rule decides."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from metalmesh.cli import resources
from metalmesh.cli.output import print_data
from metalmesh.cli.remote import describe_options
from metalmesh.controlplane.world import make_world
from metalmesh.policy.answer import Answer, Outcome, render_answer
from metalmesh.policy.why import explain
from metalmesh.policy.world import find_source, find_target

if TYPE_CHECKING:
    import argparse

#: outcomes of connections that reach an application
REACHES: Final = (Outcome.ALLOWED, Outcome.PLAINTEXT, Outcome.PASSED_THROUGH)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("source", metavar="SRC", help="namespace/name of a workload, or an address")
    parser.add_argument(
        "destination",
        metavar="DST:PORT",
        help="a service, namespace/name of a workload, an address",
    )
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text")
    resources.add_arguments(parser)
    describe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Explain; 0 when the connection reaches an application, else 3."""
    loaded = resources.load(args)
    for error in loaded.admission.errors:
        sys.stderr.write(f"not in force: {error}\n")
    answer = explain_with(loaded, args.source, args.destination)
    if args.output == "text":
        sys.stdout.write(render_answer(answer))
    else:
        print_data(answer.to_dict(), args.output)
    return 0 if answer.outcome in REACHES else 3


def explain_with(loaded: resources.Loaded, source: str, destination: str) -> Answer:
    """The answer, with these resources in force."""
    world = make_world(loaded.admission.objects, loaded.computation, loaded.options)
    who = find_source(world.state, source)
    return explain(world, who, find_target(world.state, who, destination))
