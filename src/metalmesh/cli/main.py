"""Entry point of the command ``metalmesh``.

Verbs are modules of this package with ``add_arguments(parser)`` and ``run(args) -> int``; they are
imported lazily, so that ``metalmesh node netns up`` does not pay for gRPC.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Final

from metalmesh import __version__
from metalmesh.errors import MetalmeshError

#: verb -> (module below metalmesh.cli, one line of help)
VERBS: Final[dict[str, tuple[str, str]]] = {
    "analyze": ("analyze", "find errors and suspicious things in resources"),
    "apply": ("apply", "have objects in the store as files say"),
    "ca": ("ca", "make the mesh's root and issuing certificates"),
    "check-config": ("check_config", "check a service's configuration file"),
    "controlplane": ("controlplane", "run the control plane"),
    "delete": ("delete", "take objects out of the store"),
    "describe": ("describe", "show an object and what the control plane thinks of it"),
    "get": ("get", "list objects of the store"),
    "netpol": ("netpol", "explain, check, show NetworkPolicies"),
    "node": ("node", "run the node agent; make or remove a workload's netns"),
    "probe": ("probe", "open a connection from a workload, for `why --probe`"),
    "proxy-status": ("proxy_status", "show who follows the control plane, and how far"),
    "token": ("token", "mint, list or revoke join tokens"),
    "validate": ("validate", "check resources before they reach the store"),
    "version": ("version", "show the versions of the command and of the mesh"),
    "why": ("why", "explain what becomes of a connection, and which rule decides"),
    "ztunnel": ("ztunnel", "run the L4 proxy of a node"),
    "ztunnel-config": ("ztunnel_config", "show what a ztunnel knows"),
}
#: short names of verbs, as istioctl has them
ALIASES: Final = {"ps": "proxy-status", "zc": "ztunnel-config"}
#: verbs that can be run on another machine of the inventory (metalmesh.cli.remote)
REMOTE: Final = frozenset(
    (
        *("analyze", "apply", "delete", "describe", "get", "netpol", "proxy-status", "version"),
        *("why", "ztunnel-config"),
    )
)


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in sorted(VERBS.items())]
    return "\n".join(["usage: metalmesh VERB ...", "", *lines, ""])


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit status (0 done, 1 refused, 2 wrong usage)."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in {"-h", "--help"}:
        sys.stdout.write(_usage())
        return 0 if arguments else 2
    if arguments[0] in {"-V", "--version"}:
        sys.stdout.write(f"metalmesh {__version__}\n")
        return 0
    verb = ALIASES.get(arguments[0], arguments[0])
    if verb not in VERBS:
        sys.stderr.write(f"metalmesh: no verb {verb!r}\n{_usage()}")
        return 2
    try:
        return _run(verb, arguments[1:])
    except MetalmeshError as error:
        sys.stderr.write(f"metalmesh {verb}: {error}\n")
        return 1


def _run(verb: str, arguments: list[str]) -> int:
    name, text = VERBS[verb]
    module = importlib.import_module(f"metalmesh.cli.{name}")
    parser = argparse.ArgumentParser(prog=f"metalmesh {verb}", description=text)
    module.add_arguments(parser)
    if verb in REMOTE:
        from metalmesh.cli import remote

        target, arguments = remote.split_target(arguments)
        args = parser.parse_args(arguments)  # wrong usage and --help need no other machine
        if target.host or target.inventory:
            elsewhere = getattr(module, "run_elsewhere", None)
            if elsewhere is not None:
                return int(elsewhere(target, args, [verb, *arguments]))
            return remote.run(target, [verb, *arguments])
        return int(module.run(args))
    return int(module.run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
