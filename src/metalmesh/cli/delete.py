"""``metalmesh delete KIND NAME | -f FILE``: take objects out of the store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from metalmesh.cli import remote, store
from metalmesh.cli.apply import joined, read_objects
from metalmesh.controlplane.edits import plan_delete, resource_name
from metalmesh.errors import MetalmeshError
from metalmesh.model.resources import KINDS
from metalmesh.render.kubectl import find_kind

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("kind", nargs="?", default="", metavar="KIND")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-n", "--namespace", default="default")
    parser.add_argument("-f", "--filename", action="append", metavar="FILE|DIR|-", dest="files")
    store.add_arguments(parser)
    remote.describe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Delete; nothing is deleted unless everything is there."""
    ids = [item.id for item in read_objects(args.files)] if args.files else _ids(args)
    where = store.Store(args.config)
    with where.locked():
        changes = plan_delete(where.scan(), ids)
        where.write(changes)
    for change in changes:
        kind, _, name = resource_name(change.id).partition("/")
        sys.stdout.write(f'{kind} "{name}" deleted\n')
    return 0


def run_elsewhere(target: argparse.Namespace, args: argparse.Namespace, words: list[str]) -> int:
    """Files are those of this machine."""
    if args.files:
        return remote.run(target, ["delete", "-f", "-"], joined(args.files))
    return remote.run(target, words)


def _ids(args: argparse.Namespace) -> list[str]:
    if not args.kind or not args.names:
        raise MetalmeshError("give KIND and NAME, or -f FILE")
    kind = find_kind(args.kind)
    prefix = f"{kind} {args.namespace}/" if KINDS[kind].namespaced else f"{kind} "
    return [prefix + name for name in args.names]
