# SPDX-License-Identifier: Apache-2.0
# PRIVATE to the collection metalmesh.ambient.

"""Pure decisions about systemd units: live properties in, systemctl verbs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: what `systemctl show` is asked for
PROPERTIES = ("Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload")

#: what is done to units, in this order
VERBS = ("enable", "start", "restart", "stop", "disable")

RUNNING = frozenset({"active", "activating", "reloading"})
ENABLED = frozenset({"enabled", "enabled-runtime", "static", "indirect", "generated", "alias"})


@dataclass(frozen=True, kw_only=True)
class UnitPlan:
    """What is done to a set of units, in this order."""

    #: systemd has to read unit files again
    reload: bool = False
    enable: list[str] = field(default_factory=list)
    start: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    disable: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Return whether a unit changes its state; a reload alone is no change."""
        return any(getattr(self, verb) for verb in VERBS)

    def to_diff(self) -> dict[str, str]:
        """Return the form in which Ansible prints differences."""
        lines = [f"{verb} {name}" for verb in VERBS for name in getattr(self, verb)]
        return {
            "before_header": "units (before)",
            "after_header": "units (after)",
            "before": "",
            "after": "".join(f"{line}\n" for line in lines),
        }


def parse_show(text: str) -> dict[str, dict[str, str]]:
    """Parse the output of `systemctl show` of several units: blocks parted by an empty line."""
    units: dict[str, dict[str, str]] = {}
    for block in text.strip().split("\n\n"):
        pairs = (line.split("=", 1) for line in block.splitlines() if "=" in line)
        properties = dict(pairs)
        if "Id" in properties:
            units[properties["Id"]] = properties
    return units


def full_name(name: str) -> str:
    """Return ``name`` with the suffix that systemctl would add."""
    suffixes = (".service", ".socket", ".timer", ".target", ".path", ".mount", ".slice")
    return name if name.endswith(suffixes) else f"{name}.service"


def instances_of(template: str, live: dict[str, dict[str, str]]) -> list[str]:
    """Return the live units that are instances of the unit ``template`` (``name@.service``)."""
    prefix, _, suffix = template.partition("@")
    return sorted(
        name
        for name in live
        if name.startswith(f"{prefix}@") and name.endswith(suffix) and name != template
    )


def _is_enabled(properties: dict[str, str]) -> bool:
    return properties.get("UnitFileState", "") in ENABLED


def _is_running(properties: dict[str, str]) -> bool:
    return properties.get("ActiveState", "") in RUNNING


def plan_units(
    live: dict[str, dict[str, str]], wanted: list[dict[str, Any]], purge: str = ""
) -> UnitPlan:
    """Compare live units with the wanted ones.

    ``wanted``: name, state (started, stopped or empty: leave alone), enabled (or None: leave
    alone), restart_running (restart it if it runs). ``purge``: a template of which every live
    instance that is not wanted is stopped and disabled.
    """
    enable, start, restart, stop, disable = [], [], [], [], []
    for item in wanted:
        properties = live.get(item["name"], {})
        if item["enabled"] is not None and item["enabled"] != _is_enabled(properties):
            (enable if item["enabled"] else disable).append(item["name"])
        if item["state"] == "started" and not _is_running(properties):
            start.append(item["name"])
        if item["state"] == "stopped" and _is_running(properties):
            stop.append(item["name"])
        elif item["restart_running"] and _is_running(properties):
            restart.append(item["name"])
    names = {item["name"] for item in wanted}
    for name in instances_of(purge, live) if purge else []:
        if name in names:
            continue
        if live[name].get("ActiveState") != "inactive":
            stop.append(name)
        if _is_enabled(live[name]):
            disable.append(name)
    stale = any(
        live.get(name, {}).get("NeedDaemonReload") == "yes"
        or live.get(name, {}).get("LoadState") == "not-found"
        for name in names
    )
    return UnitPlan(
        reload=stale, enable=enable, start=start, restart=restart, stop=stop, disable=disable
    )


__all__ = [
    "PROPERTIES",
    "VERBS",
    "UnitPlan",
    "full_name",
    "instances_of",
    "parse_show",
    "plan_units",
]
