"""``metalmesh controlplane run --config FILE``: run the control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="run")
    run_verb = verbs.add_parser("run", help="run in the foreground")
    run_verb.add_argument(
        "--config", required=True, metavar="FILE", help="such as /etc/metalmesh/controlplane.yaml"
    )


def run(args: argparse.Namespace) -> int:
    """Run until stopped."""
    import asyncio
    import gc

    from metalmesh.cli.check_config import load_mapping
    from metalmesh.controlplane.config import parse_config
    from metalmesh.controlplane.main import ControlPlane
    from metalmesh.service import logs

    config = parse_config(load_mapping(args.config), args.config)
    logs.configure(config.log_level, config.log_format)

    async def serve() -> None:
        control_plane = ControlPlane(config)
        gc.freeze()  # what imports made lives for ever: spare the collector and the page tables
        await control_plane.run()

    asyncio.run(serve())
    return 0
