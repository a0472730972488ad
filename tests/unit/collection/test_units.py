"""Plans of systemd units."""

from __future__ import annotations

from typing import Any

from ansible_collections.metalmesh.ambient.plugins.module_utils import _units

SHOW = """\
Id=a.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no

Id=netns@x.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no

Id=netns@y.service
LoadState=loaded
ActiveState=failed
UnitFileState=disabled
NeedDaemonReload=no
"""


def item(name: str, **changes: Any) -> dict[str, Any]:
    """A unit that should run now and at boot."""
    return {"name": name, "state": "started", "enabled": True, "restart_running": False} | changes


def test_units_as_wanted_need_nothing() -> None:
    plan = _units.plan_units(_units.parse_show(SHOW), [item("a.service")])
    assert not plan.changed
    assert not plan.reload


def test_unknown_unit_is_loaded_enabled_and_started() -> None:
    """In check mode this tells what would happen to a unit whose file is not there yet."""
    live = {"b.service": {"Id": "b.service", "LoadState": "not-found", "ActiveState": "inactive"}}
    plan = _units.plan_units(live, [item("b.service")])
    assert plan.reload
    assert (plan.enable, plan.start) == (["b.service"], ["b.service"])


def test_instances_that_nobody_wants_are_stopped_and_disabled() -> None:
    """A failed one as well, so that it does not linger."""
    live = _units.parse_show(SHOW)
    plan = _units.plan_units(live, [], "netns@.service")
    assert plan.stop == ["netns@x.service", "netns@y.service"]
    assert plan.disable == ["netns@x.service"]


def test_restart_is_for_units_that_run() -> None:
    live = _units.parse_show(SHOW)
    moved = {"state": None, "enabled": None, "restart_running": True}
    plan = _units.plan_units(live, [item("a.service", **moved), item("z.service", **moved)])
    assert plan.restart == ["a.service"]


def test_state_left_out_is_left_alone() -> None:
    plan = _units.plan_units({}, [item("a.service", state=None, enabled=None)])
    assert not plan.changed


def test_name_gets_the_suffix_systemctl_would_add() -> None:
    assert _units.full_name("metalmesh-node") == "metalmesh-node.service"
    assert _units.full_name("netns@demo.x") == "netns@demo.x.service"
    assert _units.full_name("a.slice") == "a.slice"
