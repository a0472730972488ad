"""The command `lab/lab`: one function per verb."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lab.driver import machine, state
from lab.driver.errors import LabError
from lab.driver.lab import Lab, down

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    options = _parser().parse_args(arguments)
    action: Callable[[argparse.Namespace], int] = options.action
    try:
        return action(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab/lab", description="The embedded lab: systemd-nspawn machines on a bridge."
    )
    parser.add_argument(
        "--name",
        default=os.environ.get("LAB_NAME") or state.DEFAULT_LAB,
        help="which lab (default: $LAB_NAME or %(default)s)",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    up = verbs.add_parser("up", help="make the lab, or complete it")
    up.add_argument("--inventory", type=Path, default=state.DEFAULT_INVENTORY)
    up.set_defaults(action=_up)

    remove = verbs.add_parser("down", help="remove the lab and every trace of it")
    remove.add_argument("--all", action="store_true", help="remove all labs of this host")
    remove.set_defaults(action=_down)

    rebuild = verbs.add_parser("rebuild", help="replace nodes (default: all) by fresh ones")
    rebuild.add_argument("nodes", nargs="*", metavar="NODE")
    rebuild.set_defaults(action=_rebuild)

    status = verbs.add_parser("status", help="show nodes, addresses and whether they answer")
    status.add_argument("--json", action="store_true")
    status.set_defaults(action=_status)

    run = verbs.add_parser("exec", help="run a command on a node by ssh, or a shell")
    run.add_argument("node", metavar="NODE")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    run.set_defaults(action=_exec)

    capture = verbs.add_parser("capture", help="tcpdump on the fabric's side of a node's link")
    capture.add_argument("node", metavar="NODE")
    capture.add_argument("arguments", nargs=argparse.REMAINDER, metavar="TCPDUMP_ARGUMENT")
    capture.set_defaults(action=_capture)

    logs = verbs.add_parser("logs", help="journal of a node; further arguments go to journalctl")
    logs.add_argument("node", metavar="NODE")
    logs.add_argument("arguments", nargs=argparse.REMAINDER, metavar="JOURNALCTL_ARGUMENT")
    logs.set_defaults(action=_logs)

    reboot = verbs.add_parser("reboot", help="restart nodes: files stay, the network is new")
    reboot.add_argument("nodes", nargs="+", metavar="NODE")
    reboot.add_argument("--hard", action="store_true", help="cut the power, no shutdown")
    reboot.set_defaults(action=_reboot)

    kill = verbs.add_parser("kill", help="cut the power of nodes; `up` starts them again")
    kill.add_argument("nodes", nargs="+", metavar="NODE")
    kill.set_defaults(action=_kill)
    return parser


def _up(options: argparse.Namespace) -> int:
    Lab.up(options.name, options.inventory)
    return 0


def _down(options: argparse.Namespace) -> int:
    down(None if options.all else options.name)
    return 0


def _rebuild(options: argparse.Namespace) -> int:
    Lab.open(options.name, quiet=False).rebuild(options.nodes)
    return 0


def _status(options: argparse.Namespace) -> int:
    """Exit 0 only when every node is up."""
    lab = Lab.open(options.name)
    rows = [
        {
            "name": node.name,
            "up": lab.is_up(node.name),
            "address_v4": node.address_v4,
            "address_v6": node.address_v6,
            "image": node.image,
            "groups": list(node.groups),
            "machine": node.object_name,
            "link": node.link,
        }
        for node in lab.plan.nodes
    ]
    if options.json:
        facts = {"lab": lab.plan.name, "fabric": lab.plan.fabric, "nodes": rows}
        print(json.dumps(facts, indent=1))
    else:
        for row in rows:
            word = "up" if row["up"] else "DOWN"
            print(
                f"{row['name']:<11} {word:<5} {row['address_v4']:<14} {row['address_v6']:<18}"
                f" {row['image']:<9} {' '.join(lab.plan.node(str(row['name'])).groups)}"
            )
    return 0 if all(row["up"] for row in rows) else 1


def _exec(options: argparse.Namespace) -> int:
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    # One word is a shell command as it stands; several are an argument list.
    command = words[0] if len(words) == 1 else shlex.join(words)
    return _become(Lab.open(options.name).ssh_command(options.node, command))


def _capture(options: argparse.Namespace) -> int:
    return _become(Lab.open(options.name).capture_command(options.node, *options.arguments))


def _logs(options: argparse.Namespace) -> int:
    lab = Lab.open(options.name)
    node = lab.plan.node(options.node)
    if lab.is_up(node.name):
        wanted = options.arguments or ["-b", "-n", "200"]
        return _become(lab.ssh_command(node.name, ["journalctl", "--no-pager", *wanted]))
    print(f"node {node.name} does not answer; its journal on disk and its console:", flush=True)
    files = machine.files_of(node)
    journal = files.merged / "var/log/journal"
    subprocess.run(["journalctl", "--no-pager", "-n", "200", "-D", str(journal)], check=False)
    print(files.console.read_text() if files.console.exists() else "", end="")
    return 0


def _reboot(options: argparse.Namespace) -> int:
    Lab.open(options.name, quiet=False).reboot(options.nodes, hard=options.hard)
    return 0


def _kill(options: argparse.Namespace) -> int:
    Lab.open(options.name, quiet=False).kill(options.nodes)
    return 0


def _become(command: list[str]) -> int:
    """Replace this process, so that signals and the terminal are the command's."""
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        raise LabError(f"command {command[0]!r} is not installed; run `make setup`") from error
