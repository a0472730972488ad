"""``metalmesh proxy-status``: who is connected to the control plane, and whether it is in step."""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING

from metalmesh.cli import remote, store
from metalmesh.cli.admin import fetch
from metalmesh.cli.output import print_data
from metalmesh.cli.resources import read_config
from metalmesh.render.proxy_status import render_proxy_status

if TYPE_CHECKING:
    import argparse

UNIT = "metalmesh-controlplane"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("-o", "--output", choices=("short", "json", "yaml"), default="short")
    store.add_arguments(parser)
    remote.describe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the clients."""
    config = read_config(args.config)
    streams = json.loads(fetch(config.metrics_port, "/debug/syncz", UNIT))
    if args.output != "short":
        print_data(streams, args.output)
    else:
        sys.stdout.write(render_proxy_status(streams, socket.gethostname()))
    return 0
