"""``metalmesh why SRC DST:PORT``: what becomes of a connection, and which rule decides.

With ``--probe`` a real connection is opened from the source's namespace, and what the ztunnels of
both ends logged about it is held against the explanation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from metalmesh.cli import remote, resources
from metalmesh.cli.output import print_data
from metalmesh.controlplane.world import make_world
from metalmesh.errors import MetalmeshError
from metalmesh.policy.answer import Answer, render_answer
from metalmesh.policy.observation import (
    REACHES,
    Observation,
    agrees,
    chosen_path,
    render_observation,
)
from metalmesh.policy.why import explain
from metalmesh.policy.world import find_source, find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: exit statuses besides 0
NOT_REACHED: Final = 3
NOT_AS_FORETOLD: Final = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("source", metavar="SRC", help="namespace/name of a workload, or an address")
    parser.add_argument(
        "destination",
        metavar="DST:PORT",
        help="a service, namespace/name of a workload, address",
    )
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text")
    parser.add_argument(
        "--probe", action="store_true",
        help="open a real connection from the workload (no byte is sent) and compare",
    )  # fmt: skip
    resources.add_arguments(parser)
    remote.describe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Explain; 0 when the connection reaches an application."""
    loaded = resources.load(args)
    for error in loaded.admission.errors:
        sys.stderr.write(f"not in force: {error}\n")
    answer = explain_with(loaded, args.source, args.destination).to_dict()
    seen = _observe(answer, _here) if args.probe else None
    return _finish(args, answer, seen)


def run_elsewhere(target: argparse.Namespace, args: argparse.Namespace, words: list[str]) -> int:
    """Have the control plane explain, and the nodes probe."""
    if not args.probe:
        return remote.run(target, words)
    done = remote.capture(target, ["why", args.source, args.destination, "-o", "json"])
    if not done.out:
        raise MetalmeshError(done.err.strip())
    answer = json.loads(done.out)

    def there(node: str, arguments: Sequence[str]) -> str:
        place = argparse.Namespace(host=node, inventory=target.inventory)
        done = remote.capture(place, arguments)
        return done.out or done.err

    return _finish(args, answer, _observe(answer, there))


def _here(node: str, arguments: Sequence[str]) -> str:
    """Run a half of the probe on this machine, which must be the node."""
    del node
    command = [sys.executable, "-m", "metalmesh.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def _observe(answer: dict[str, Any], runner: Callable[[str, Sequence[str]], str]) -> Observation:
    """Connect on the source's node, then look for the line on the destination's."""
    node, netns = answer["node"], answer["netns"]
    if not node or not netns:
        raise MetalmeshError(f"--probe: {answer['source']} is not a workload of a node of ours")
    address, _, port = answer["address"].rpartition(":")
    if not address:
        raise MetalmeshError(f"--probe: {answer['destination']} has no address to connect to")
    arguments = ["probe", "connect", netns, address.strip("[]"), port]
    found = _parse(node, runner(node, arguments))
    path = chosen_path(answer, found["line"])
    line = ""
    reachable = runner is not _here or (path is not None and path["node"] == node)
    if path is not None and path["node"] and found["source"] and reachable:
        client = found["source"].rpartition(":")[0] + ":"
        words = ["probe", "log", str(found["since"]), client, path["target"], "inbound"]
        line = _parse(path["node"], runner(path["node"], words))["line"]
    return Observation(
        source=found["source"],
        result=found["result"],
        received=found["received"],
        source_line=found["line"],
        destination_line=line,
    )


def _parse(node: str, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        raise MetalmeshError(f"--probe: {node}: {text.strip()}") from None


def _finish(args: argparse.Namespace, answer: dict[str, Any], seen: Observation | None) -> int:
    """Print everything; return the exit status."""
    if args.output == "text":
        sys.stdout.write(render_answer(answer))
        if seen is not None:
            sys.stdout.write("\n" + render_observation(answer, seen))
    else:
        probe = {"probe": {**seen.to_dict(), "agrees": agrees(answer, seen)}} if seen else {}
        print_data({**answer, **probe}, args.output)
    if seen is not None and not agrees(answer, seen):
        return NOT_AS_FORETOLD
    reached = not seen.error if seen is not None else answer["outcome"] in REACHES
    return 0 if reached else NOT_REACHED


def explain_with(loaded: resources.Loaded, source: str, destination: str) -> Answer:
    """The answer, with these resources in force."""
    world = make_world(loaded.admission.objects, loaded.computation, loaded.options)
    who = find_source(world.state, source)
    return explain(world, who, find_target(world.state, who, destination))
