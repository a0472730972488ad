"""``metalmesh apply -f FILE``: have objects in the store as files say, checked as a whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from metalmesh.cli import remote, store
from metalmesh.cli.resources import read_files
from metalmesh.controlplane.edits import plan_apply, resource_name
from metalmesh.errors import MetalmeshError, ResourceError
from metalmesh.model.resources import ParsedObject

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "-f", "--filename", action="append", required=True, metavar="FILE|DIR|-", dest="files"
    )
    parser.add_argument("--dry-run", action="store_true", help="check, and change nothing")
    store.add_arguments(parser)
    remote.describe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Apply; nothing is changed unless everything is valid."""
    wanted = read_objects(args.files)
    where = store.Store(args.config)
    with where.locked():
        scan = where.scan()
        changes = plan_apply(scan, wanted)
        for warning in where.check(scan, changes):
            sys.stderr.write(f"Warning: {warning}\n")
        if not args.dry_run:
            where.write(changes)
    suffix = " (dry run)" if args.dry_run else ""
    for change in changes:
        sys.stdout.write(f"{resource_name(change.id)} {change.verb}{suffix}\n")
    return 0


def run_elsewhere(target: argparse.Namespace, args: argparse.Namespace, words: list[str]) -> int:
    """Have the files of this machine applied there."""
    del words
    arguments = ["apply", "-f", "-", *(["--dry-run"] if args.dry_run else [])]
    return remote.run(target, arguments, joined(args.files))


def joined(files: list[str]) -> bytes:
    """The text of all the files, as one stream of documents."""
    return "\n---\n".join(text for _, text in read_files(files)).encode()


def read_objects(files: list[str]) -> list[ParsedObject]:
    """Every object of the files; any error refuses them all."""
    from metalmesh.model.resources import parse_documents

    found = [item for path, text in read_files(files) for item in parse_documents(text, path)]
    errors = [str(item) for item in found if isinstance(item, ResourceError)]
    if errors:
        raise MetalmeshError("nothing was changed:\n" + "\n".join(errors))
    objects = [item for item in found if isinstance(item, ParsedObject)]
    if not objects:
        raise MetalmeshError(f"no objects in {', '.join(map(str, map(Path, files)))}")
    return objects
