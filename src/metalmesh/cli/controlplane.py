"""``metalmesh controlplane run --config FILE``: run the control plane."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

#: gRPC has no setting for the least version of TLS. Its list of suites is that of TLS 1.2 only, and
#: no suite for RSA keys can be used with our certificate: what is left is TLS 1.3. It reads the
#: environment when it is imported
_ONLY_TLS_1_3: Final = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES128-GCM-SHA256"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="run")
    run_verb = verbs.add_parser("run", help="run in the foreground")
    run_verb.add_argument(
        "--config", required=True, metavar="FILE", help="such as /etc/metalmesh/controlplane.yaml"
    )


def run(args: argparse.Namespace) -> int:
    """Run until stopped."""
    os.environ.update(_ONLY_TLS_1_3)
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
