"""``metalmesh get KIND [NAME]`` and ``describe KIND NAME``: objects of the store, with status."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from metalmesh.cli import remote, store
from metalmesh.cli.output import print_data
from metalmesh.errors import MetalmeshError
from metalmesh.model.resources import KINDS, ParsedObject
from metalmesh.render.kubectl import find_kind, render_list, render_status

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("kind", metavar="KIND")
    parser.add_argument("name", nargs="?", default="", metavar="NAME")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("-n", "--namespace", default="default")
    place.add_argument("-A", "--all-namespaces", action="store_true")
    parser.add_argument("-o", "--output", choices=("wide", "yaml", "json", "name"), default="")
    store.add_arguments(parser)
    remote.describe_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the objects."""
    kind = find_kind(args.kind)
    where = store.Store(args.config)
    found = select(where, kind, args)
    if args.output in ("yaml", "json"):
        status = where.status()
        objects = [with_status(item, status) for item in found]
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        print_data(objects[0] if args.name else listed, args.output)
    elif args.output == "name":
        from metalmesh.controlplane.edits import resource_name

        sys.stdout.write("".join(f"{resource_name(item.id)}\n" for item in found))
    elif not found:
        place = "" if args.all_namespaces else f" in {args.namespace} namespace"
        sys.stderr.write(f"No resources found{place if KINDS[kind].namespaced else ''}.\n")
    else:
        table = render_list(
            kind, [item.data for item in found], where.status(), datetime.now(UTC),
            namespaces=args.all_namespaces and KINDS[kind].namespaced, wide=args.output == "wide",
        )  # fmt: skip
        sys.stdout.write(table)
    return 0


def select(where: store.Store, kind: str, args: argparse.Namespace) -> list[ParsedObject]:
    """The objects that are asked for, by name; the one that is named must be there."""
    namespaced = KINDS[kind].namespaced
    objects = {
        item.id: item
        for _, items in sorted(where.scan().files.items(), reverse=True)
        for item in items
        if isinstance(item, ParsedObject)
    }
    if args.name:
        key = f"{kind} {args.namespace}/{args.name}" if namespaced else f"{kind} {args.name}"
        if key not in objects:
            raise MetalmeshError(f"{key} is not in the store{_faults(where, key)}")
        return [objects[key]]
    every = not namespaced or args.all_namespaces
    prefix = f"{kind} " if every else f"{kind} {args.namespace}/"
    return [item for key, item in sorted(objects.items()) if key.startswith(prefix)]


def _faults(where: store.Store, key: str) -> str:
    """Why an object cannot be shown although somebody wrote it."""
    entry = where.status().get(key, {})
    texts = [
        f"{item['source']}: {item['field']}: {item['message']}" for item in entry.get("errors", ())
    ]
    return "; it is refused: " + "; ".join(texts) if texts else ""


def with_status(item: ParsedObject, status: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The object with its conditions, as an API server returns it."""
    conditions = status.get(item.id, {}).get("conditions")
    data = dict(item.data)
    return {**data, "status": {"conditions": conditions}} if conditions else data


def describe(args: argparse.Namespace) -> int:
    """Print one object and everything that is known about it."""
    kind = find_kind(args.kind)
    where = store.Store(args.config)
    args.all_namespaces = False
    (item,) = select(where, kind, args)
    sys.stdout.write(yaml.safe_dump(dict(item.data), sort_keys=False, allow_unicode=True))
    sys.stdout.write("---\n" + render_status(where.status().get(item.id, {})))
    return 0
