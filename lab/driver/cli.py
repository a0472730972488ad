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

    def verb(
        name: str, action: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=text, description=text)
        found.set_defaults(action=action)
        return found

    up = verb("up", _up, "make the lab, or complete it")
    up.add_argument("--inventory", type=Path, default=state.DEFAULT_INVENTORY)
    remove = verb("down", _down, "remove the lab and every trace of it")
    remove.add_argument("--all", action="store_true", help="remove all labs of this host")
    rebuild = verb("rebuild", _rebuild, "replace nodes (default: all) by fresh ones")
    rebuild.add_argument("nodes", nargs="*", metavar="NODE")
    status = verb("status", _status, "show nodes, addresses and whether they answer")
    status.add_argument("--json", action="store_true")
    _add_node(verb("exec", _exec, "run a command on a node by ssh, or a shell"), "COMMAND")
    capture = verb("capture", _capture, "tcpdump on the fabric's side of a node's link")
    _add_node(capture, "TCPDUMP_ARGUMENT")
    logs = verb("logs", _logs, "journal of a node; further arguments go to journalctl")
    _add_node(logs, "JOURNALCTL_ARGUMENT")
    reboot = verb("reboot", _reboot, "restart nodes: files stay, the network is new")
    reboot.add_argument("nodes", nargs="+", metavar="NODE")
    reboot.add_argument("--hard", action="store_true", help="cut the power, no shutdown")
    kill = verb("kill", _kill, "cut the power of nodes; `up` starts them again")
    kill.add_argument("nodes", nargs="+", metavar="NODE")
    return parser


def _add_node(parser: argparse.ArgumentParser, rest: str) -> None:
    """A verb about one node whose further words go to another command as they are."""
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar=rest)


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
    given = options.arguments
    words = given[1:] if given[:1] == ["--"] else given
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
