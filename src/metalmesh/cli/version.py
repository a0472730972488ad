"""``metalmesh version``: of this command, of the control plane, and of what is connected to it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from metalmesh import __version__
from metalmesh.cli import remote, store
from metalmesh.cli.admin import fetch
from metalmesh.cli.output import print_data
from metalmesh.cli.proxy_status import UNIT
from metalmesh.cli.resources import read_config

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text")
    parser.add_argument("--short", action="store_true", help="only of this command")
    store.add_arguments(parser)
    remote.describe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is known here; without a control plane, the command's own version."""
    mesh = args.config.exists() and not args.short
    return _print(args, {"clientVersion": __version__, **(_mesh(args) if mesh else {})})


def run_elsewhere(target: argparse.Namespace, args: argparse.Namespace, words: list[str]) -> int:
    """The mesh's versions are asked for there, the command's own is this one."""
    del words
    done = remote.capture(target, ["version", "-o", "json"])
    if not done.out:
        sys.stderr.write(done.err)
        return done.status
    return _print(args, {**json.loads(done.out), "clientVersion": __version__})


def _mesh(args: argparse.Namespace) -> dict[str, Any]:
    port = read_config(args.config).metrics_port
    streams = json.loads(fetch(port, "/debug/syncz", UNIT))
    versions = Counter(
        (stream["client"].partition("~")[0], stream["version"]) for stream in streams
    )
    return {
        "meshVersion": fetch(port, "/version", UNIT).strip(),
        "dataPlaneVersion": [
            {"component": component, "version": version, "count": count}
            for (component, version), count in sorted(versions.items())
        ],
    }


def _print(args: argparse.Namespace, found: dict[str, Any]) -> int:
    if args.output != "text":
        print_data(found, args.output)
        return 0
    lines = [f"client version: {found['clientVersion']}"]
    if "meshVersion" in found:
        lines.append(f"control plane version: {found['meshVersion']}")
        planes = [
            f"{item['version'] or 'unknown'} ({item['count']} {item['component']})"
            for item in found["dataPlaneVersion"]
        ]
        lines.append(f"data plane version: {', '.join(planes) or 'none'}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
