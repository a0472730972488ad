"""Verbs on another machine of the inventory; over real ssh in tests/lab."""

from __future__ import annotations

import base64
import stat
import subprocess
from pathlib import Path

import pytest

from metalmesh.cli import remote
from metalmesh.errors import MetalmeshError


def test_target_is_taken_off_the_arguments() -> None:
    target, rest = remote.split_target(
        ["workload", "-i", "inv", "--host=node1", "-o", "json", "--raw"]
    )
    assert (target.host, target.inventory) == ("node1", "inv")
    assert rest == ["workload", "-o", "json", "--raw"]


def test_script_passes_arguments_input_and_status_unharmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes, templates and lines are nobody's business on the way."""
    program = tmp_path / "metalmesh"
    program.write_text('#!/bin/sh\nprintf "[%s]" "$@"; cat; echo oops >&2; exit 3\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(remote, "COMMAND", str(program))
    text = remote.script(["a b", "it's", "{{ x }}"], b"one\nEND\ntwo")
    done = subprocess.run(
        ["sh", "-c", 'eval "$(base64 -d)"'], input=text.encode(), capture_output=True, check=True
    )
    answer = f"node1 | CHANGED | rc=0 >>\n{done.stdout.decode()}\n"
    found = remote.parse_answer(answer, "")
    assert found == remote.Finished("[a b][it's][{{ x }}]one\nEND\ntwo", "oops\n", 3)


def test_script_survives_without_a_template_sign() -> None:
    text = remote.script(["{{ 1 }}"], b"{{ 2 }}")
    assert "{" not in text
    assert b"{{ 1 }}" in base64.b64decode(text)


@pytest.mark.parametrize(
    "out", ['node1 | UNREACHABLE! => {"msg": "no route"}', "", "a | CHANGED | rc=0 >>\nno status\n"]
)
def test_an_answer_that_is_none_is_an_error(out: str) -> None:
    with pytest.raises(MetalmeshError, match="Ansible could not run the command there"):
        remote.parse_answer(out, "")
