"""``metalmesh ztunnel run --config FILE``: run the L4 proxy of a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="run")
    run_verb = verbs.add_parser("run", help="run in the foreground")
    run_verb.add_argument(
        "--config", required=True, metavar="FILE", help="such as /etc/metalmesh/ztunnel.yaml"
    )


def run(args: argparse.Namespace) -> int:
    """Run until stopped."""
    import asyncio
    import gc
    import os

    # gRPC's own lines are not ours in shape, and our errors carry their texts
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from metalmesh.cli.check_config import load_mapping
    from metalmesh.service import logs
    from metalmesh.ztunnel.config import parse_config
    from metalmesh.ztunnel.main import Ztunnel

    config = parse_config(load_mapping(args.config), args.config, os.environ)
    logs.configure(config.log_level, config.log_format)

    async def serve() -> None:
        ztunnel = Ztunnel(config)
        gc.freeze()  # what imports made lives for ever: spare the collector and the page tables
        await ztunnel.run()

    asyncio.run(serve())
    return 0
