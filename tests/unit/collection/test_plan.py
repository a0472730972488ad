"""Plans of files, directories and links."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.metalmesh.ambient.plugins.module_utils import _plan

ABSENT = {"kind": "absent"}
LIVE = {"kind": "file", "content": "a\n", "mode": 0o644, "uid": 0, "gid": 0}


def wanted(**changes: Any) -> dict[str, Any]:
    """A file of root's."""
    return {
        "content": "a\n",
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "owner": "root",
        "group": "root",
        "secret": False,
    } | changes


def test_file_as_wanted_needs_no_change() -> None:
    assert _plan.plan_file("/f", LIVE, wanted()) is None


@pytest.mark.parametrize(
    ("live", "change", "action"),
    [
        (ABSENT, {}, "write"),
        ({"kind": "link", "target": "/x"}, {}, "write"),
        (LIVE, {"content": "b\n"}, "write"),
        (LIVE, {"mode": 0o600}, "attributes"),
        (LIVE, {"gid": 7}, "attributes"),
        (LIVE, {"uid": None}, "attributes"),
    ],
)
def test_file_that_differs_is_changed(live: dict, change: dict, action: str) -> None:
    """A user who does not exist yet (None) counts as a difference: check mode on a bare machine."""
    planned = _plan.plan_file("/f", live, wanted(**change))
    assert planned is not None
    assert planned.action == action


def test_secret_is_in_no_diff() -> None:
    """Neither the old nor the new content."""
    planned = _plan.plan_file("/f", LIVE, wanted(content="secret", secret=True))
    assert planned is not None
    assert "secret" not in str(planned.to_diff()).replace("not shown", "")
    assert planned.before == ""


def test_directory_link_and_removal() -> None:
    directory = {"kind": "directory", "mode": 0o755, "uid": 0, "gid": 0}
    assert _plan.plan_directory("/d", directory, wanted(mode=0o755)) is None
    assert _plan.plan_directory("/d", directory, wanted(mode=0o700)) is not None
    assert _plan.plan_directory("/d", ABSENT, wanted()) is not None
    assert _plan.plan_link("/l", {"kind": "link", "target": "/t"}, "/t") is None
    assert _plan.plan_link("/l", ABSENT, "/t") is not None
    assert _plan.plan_removal("/f", ABSENT) is None
    assert _plan.plan_removal("/f", LIVE) is not None


def test_surplus_is_what_matches_and_is_not_wanted() -> None:
    names = ["b.yaml", "a.yaml", "keep.yaml", "other.txt"]
    assert _plan.surplus("/d", names, ["*.yaml"], {"/d/keep.yaml"}) == ["/d/a.yaml", "/d/b.yaml"]
