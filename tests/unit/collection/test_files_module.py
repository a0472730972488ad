"""The module files, on real files of a temporary directory."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError
from ansible_collections.metalmesh.ambient.plugins.modules import files

OWNER = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


class Module:
    """What the module's functions use of AnsibleModule."""

    def __init__(self, tmpdir: Path, *, check_mode: bool = False, **params: Any) -> None:
        self.tmpdir = str(tmpdir)
        self.check_mode = check_mode
        empty: dict[str, Any] = {"directories": [], "files": [], "links": [], "absent": []}
        self.params = empty | {"purge": [], "remove_empty": False} | params
        self.refuse = ""

    def run_command(self, command: str) -> tuple[int, str, str]:
        path = command.split()[-1]
        text = Path(path).read_text(encoding="utf-8")
        return (1, "", "bad content") if self.refuse and self.refuse in text else (0, "", "")


def file_item(path: Path, content: str, **changes: Any) -> dict[str, Any]:
    item = {"path": str(path), "content": content, "mode": "0600", "secret": False, "keep": False}
    return item | {"validate": None} | OWNER | changes


def test_first_run_changes_and_second_does_not(tmp_path: Path) -> None:
    target = tmp_path / "d"
    module = Module(
        tmp_path,
        directories=[{"path": str(target), "mode": "0750"} | OWNER],
        files=[file_item(target / "f", "x\n")],
        links=[{"path": str(target / "l"), "target": "f"}],
    )
    first = files.run(module)
    assert first["changed_paths"] == [str(target), str(target / "f"), str(target / "l")]
    assert (target / "f").stat().st_mode & 0o777 == 0o600
    assert (target / "l").read_text() == "x\n"
    assert files.run(module)["changed"] is False


def test_check_mode_reports_the_same_and_changes_nothing(tmp_path: Path) -> None:
    item = file_item(tmp_path / "f", "x\n")
    planned = files.run(Module(tmp_path, check_mode=True, files=[item]))
    assert not (tmp_path / "f").exists()
    done = files.run(Module(tmp_path, files=[item]))
    assert planned == done


def test_refused_content_leaves_every_file_as_it_was(tmp_path: Path) -> None:
    """The first file is good, the second is not: neither is written."""
    module = Module(
        tmp_path,
        files=[
            file_item(tmp_path / "a", "good"),
            file_item(tmp_path / "b", "broken", validate="check %s"),
        ],
    )
    module.refuse = "broken"
    with pytest.raises(ModuleError, match="b: the new content was refused: bad content"):
        files.run(module)
    assert not (tmp_path / "a").exists()


def test_kept_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "before"
    files.run(Module(tmp_path, files=[file_item(path, "first", keep=True)]))
    again = files.run(Module(tmp_path, files=[file_item(path, "second", keep=True)]))
    assert again["changed"] is False
    assert path.read_text() == "first"


def test_purge_spares_what_is_wanted_and_what_others_wrote(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("# ours\n")
    (tmp_path / "theirs.yaml").write_text("# theirs\n")
    purge = [{"directory": str(tmp_path), "patterns": ["*.yaml"], "containing": "# ours"}]
    module = Module(tmp_path, files=[file_item(tmp_path / "new.yaml", "# ours\n")], purge=purge)
    assert files.run(module)["removed_paths"] == [str(tmp_path / "old.yaml")]
    assert {path.name for path in tmp_path.glob("*.yaml")} == {"new.yaml", "theirs.yaml"}


def test_mode_that_is_no_octal_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModuleError, match="mode '0abc' is not octal"):
        files.run(Module(tmp_path, files=[file_item(tmp_path / "f", "x", mode="0abc")]))


def test_unknown_owner_is_named(tmp_path: Path) -> None:
    item = file_item(tmp_path / "f", "x", owner="no-such-user")
    with pytest.raises(ModuleError, match="there is no user 'no-such-user'"):
        files.run(Module(tmp_path, files=[item]))
    assert list(tmp_path.iterdir()) == []
