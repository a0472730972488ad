"""``metalmesh describe KIND NAME``: an object, and what the control plane thinks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metalmesh.cli import remote, store
from metalmesh.cli.get import describe as run

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("kind", metavar="KIND")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("-n", "--namespace", default="default")
    store.add_arguments(parser)
    remote.describe_options(parser)
