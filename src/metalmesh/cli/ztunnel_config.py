"""``metalmesh ztunnel-config KIND``: what a ztunnel knows, as istioctl shows it."""

from __future__ import annotations

import json
import sys
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from metalmesh.cli.admin import fetch
from metalmesh.cli.output import print_data
from metalmesh.cli.remote import describe_options
from metalmesh.constants import PORT_ZTUNNEL_ADMIN
from metalmesh.errors import MetalmeshError
from metalmesh.render.ztunnel_config import KINDS, Filters, render, render_all, select

if TYPE_CHECKING:
    import argparse

UNIT: Final = "metalmesh-ztunnel"
ALIASES: Final = {
    "workload": ("workloads", "w"),
    "service": ("services", "svc", "s"),
    "policy": ("policies", "pol", "p"),
    "certificate": ("certificates", "certs", "cert", "c"),
    "connections": ("connection", "cons"),
    "all": (),
    "log": ("o",),
}
_HELP: Final = {
    "workload": "workloads it knows",
    "service": "services it knows",
    "policy": "authorization policies it knows",
    "certificate": "certificates it holds",
    "connections": "connections open now",
    "all": "all of the above",
    "log": "show or change its log levels",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, aliases in ALIASES.items():
        one = kinds.add_parser(kind, aliases=aliases, help=_HELP[kind])
        one.set_defaults(kind=kind)
        if kind == "log":
            one.add_argument("--level", default="", help="LEVEL or MODULE:LEVEL,...")
            one.add_argument("-r", "--reset", action="store_true", help="as configured again")
        else:
            _add_view(one, kind)
        describe_options(one)


def _add_view(one: argparse.ArgumentParser, kind: str) -> None:
    one.add_argument("-o", "--output", choices=("short", "json", "yaml"), default="short")
    one.add_argument("-f", "--file", type=Path, help="a saved /config_dump; - is standard input")
    own = {"service": ["--service-namespace"], "policy": ["--policy-namespace"]}
    one.add_argument(
        *own.get(kind, ["--workload-namespace"]), "-n", "--namespace",
        dest="namespace", default="", help="only of this namespace",
    )  # fmt: skip
    if kind == "workload":
        one.add_argument("--address", default="", help="only the one with this address")
        one.add_argument(
            "--workload-node", "--node", dest="node", default="", help="only those of this node"
        )
    if kind == "connections":
        one.add_argument("--direction", choices=("inbound", "outbound"), default="")
        one.add_argument("--raw", action="store_true", help="addresses instead of names")
    if kind == "all":
        one.add_argument("--with-headers", action="store_true", help="a title above each table")


def run(args: argparse.Namespace) -> int:
    """Print what is asked for."""
    if args.kind == "log":
        return _log(args)
    dump = _load(args.file)
    filters = Filters(
        namespace=args.namespace,
        node=getattr(args, "node", ""),
        address=getattr(args, "address", ""),
        direction=getattr(args, "direction", ""),
        raw=getattr(args, "raw", False),
    )
    now = datetime.now(UTC)
    if args.output != "short":
        print_data(_data(args.kind, dump, filters), args.output)
    elif args.kind == "all":
        sys.stdout.write(render_all(dump, filters, now, titles=args.with_headers))
    else:
        sys.stdout.write(render(args.kind, dump, filters, now))
    return 0


def _data(kind: str, dump: dict[str, Any], filters: Filters) -> Any:
    if kind != "all":
        return select(kind, dump, filters)
    return {key: select(name, dump, filters) for name, (_, key, *_) in KINDS.items()}


def _load(path: Path | None) -> dict[str, Any]:
    if path is None:
        return dict(json.loads(fetch(PORT_ZTUNNEL_ADMIN, "/config_dump", UNIT)))
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
        found = json.loads(text)
    except OSError as error:
        raise MetalmeshError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MetalmeshError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict) or "workloads" not in found:
        raise MetalmeshError(f"{path}: no config_dump of a ztunnel: it has no workloads")
    return found


def _log(args: argparse.Namespace) -> int:
    query = {}
    if args.reset:
        query["reset"] = "true"
    if args.level:
        query["level"] = args.level
    path = f"/logging?{urllib.parse.urlencode(query)}" if query else "/logging"
    sys.stdout.write(fetch(PORT_ZTUNNEL_ADMIN, path, UNIT, method="POST"))
    return 0
