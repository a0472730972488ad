"""Run a verb on a machine of the inventory: ``--host PATTERN`` and ``-i INVENTORY``.

Ansible makes the connection, so that everything the inventory says about reaching a machine (user,
key, jump host, privilege escalation) holds here as it does for the plays.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metalmesh.errors import MetalmeshError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND: Final = "/usr/local/bin/metalmesh"
CONTROL_PLANE: Final = "mesh_control_plane[0]"
#: the whole script comes by stdin: no quoting, no templates, no limit of length
_ARGUMENTS: Final = {
    "argv": ["sh", "-c", 'eval "$(base64 -d)"'],
    "stdin": "{{ metalmesh_script }}",
    "strip_empty_ends": False,
}
_ENVIRON: Final = {
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_DEPRECATION_WARNINGS": "0",
    "ANSIBLE_LOAD_CALLBACK_PLUGINS": "0",
}
_ANSWER: Final = re.compile(
    r"\A.* \| \w+ \| rc=\d+ >>\n(?P<out>.*)\n<(?P<status>\d+)>\n(?P<err>.*)\Z", re.S
)


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command printed there, and its exit status."""

    out: str
    err: str
    status: int


def split_target(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that say where to run, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="")
    parser.add_argument("-i", "--inventory", default="")
    return parser.parse_known_args(arguments)


def describe_options(parser: argparse.ArgumentParser) -> None:
    """Show the options in the help of a verb; they are taken off before it parses."""
    group = parser.add_argument_group("another machine")
    group.add_argument(
        "--host", metavar="PATTERN", help="run there, by ssh as Ansible does; default with -i: "
        "the first of mesh_control_plane",
    )  # fmt: skip
    group.add_argument("-i", "--inventory", metavar="INVENTORY", help="default: ansible.cfg's")


def run(target: argparse.Namespace, arguments: Sequence[str], stdin: bytes = b"") -> int:
    """Run ``metalmesh ARGUMENTS`` there; print what it printed, return its exit status."""
    done = capture(target, arguments, stdin)
    sys.stdout.write(done.out)
    sys.stderr.write(done.err)
    return done.status


def capture(target: argparse.Namespace, arguments: Sequence[str], stdin: bytes = b"") -> Finished:
    """Run ``metalmesh ARGUMENTS`` there."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as variables:
        json.dump({"metalmesh_script": script(arguments, stdin)}, variables)
        variables.flush()
        command = [
            *("ansible", target.host or CONTROL_PLANE, "-m", "ansible.builtin.command"),
            *("-a", json.dumps(_ARGUMENTS), "-e", f"@{variables.name}"),
        ]
        if target.inventory:
            command += ["-i", target.inventory]
        try:
            done = subprocess.run(
                command, env={**os.environ, **_ENVIRON}, capture_output=True, text=True, check=False
            )
        except FileNotFoundError as error:
            raise MetalmeshError("--host and -i need the command ansible here") from error
    return parse_answer(done.stdout, done.stderr)


def script(arguments: Sequence[str], stdin: bytes) -> str:
    """The shell script that is run there, in base64: output, exit status, errors."""
    data = base64.b64encode(stdin).decode()
    command = shlex.join([COMMAND, *arguments])
    text = (
        f"err=$(mktemp)\nbase64 -d <<'END' | {command} 2>\"$err\"\n{data}\nEND\n"
        'printf \'\\n<%d>\\n\' $?\ncat "$err"\nrm "$err"\n'
    )
    return base64.b64encode(text.encode()).decode()


def parse_answer(out: str, err: str) -> Finished:
    """What the command printed and its exit status, from what Ansible printed."""
    found = _ANSWER.match(out)
    if found is None:
        reason = "\n".join(filter(None, (out.strip(), err.strip()))) or "no output"
        raise MetalmeshError(f"Ansible could not run the command there: {reason}")
    # Ansible ends its own output with a newline
    return Finished(found["out"], found["err"].removesuffix("\n"), int(found["status"]))
