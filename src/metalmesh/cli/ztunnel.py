"""``metalmesh ztunnel run|reload --config FILE``: the L4 proxy of a node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from metalmesh.errors import MetalmeshError

if TYPE_CHECKING:
    import argparse

    from metalmesh.ztunnel.config import ZtunnelConfig

TAKEN_OVER: Final = b"taken over"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="run|reload", dest="verb")
    texts = {
        "run": "run in the foreground",
        "reload": "take over from the ztunnel that runs, without ending a connection; "
        "ExecReload= of its unit",
    }
    for name, text in texts.items():
        verb = verbs.add_parser(name, help=text)
        verb.add_argument(
            "--config", required=True, metavar="FILE", help="such as /etc/metalmesh/ztunnel.yaml"
        )
        verb.add_argument(
            "--local-xds", default="", metavar="FILE",
            help="the mesh in ztunnel's own format; local_xds_path of the configuration",
        )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run until stopped, or reload."""
    if args.verb == "reload":
        return _reload(args)
    return _serve(_load(args))


def _load(args: argparse.Namespace) -> ZtunnelConfig:
    # gRPC's own lines are not ours in shape, and our errors carry their texts
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from metalmesh.cli.check_config import load_mapping
    from metalmesh.service import logs
    from metalmesh.ztunnel.config import parse_config

    values = load_mapping(args.config)
    if args.local_xds:
        values["local_xds_path"] = args.local_xds
    config = parse_config(values, args.config, os.environ)
    logs.configure(config.log_level, config.log_format)
    return config


def _reload(args: argparse.Namespace) -> int:
    """Start a successor of the running main process; return when it has taken over.

    The successor is a child of systemd, not ours, so that systemd takes it as main process.
    """
    config = _load(args)
    outcome, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(outcome)
        os.setsid()
        if os.fork():
            os._exit(0)
        return _serve(config, report)
    os.close(report)
    os.waitpid(child, 0)
    with os.fdopen(outcome, "rb") as pipe:
        if pipe.read() == TAKEN_OVER:
            return 0
    raise MetalmeshError("the new process did not take over, the old one goes on; see the journal")


def _serve(config: ZtunnelConfig, report: int = -1) -> int:
    """Run; a successor (with a pipe to report to) takes over first."""
    import asyncio
    import gc

    from metalmesh.ztunnel.handover import Predecessor
    from metalmesh.ztunnel.main import Ztunnel

    predecessor = Predecessor(config.handover_socket) if report >= 0 else None
    if predecessor is not None:
        predecessor.inherit()

    def taken_over() -> None:
        os.write(report, TAKEN_OVER)
        os.close(report)

    async def serve() -> None:
        ztunnel = Ztunnel(config, predecessor)
        gc.freeze()  # what imports made lives for ever: spare the collector and the page tables
        await ztunnel.run()

    if predecessor is not None:
        predecessor.on_taken_over = taken_over
    asyncio.run(serve())
    return 0
