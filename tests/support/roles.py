"""What the verify tests of the roles' molecule scenarios ask of a machine, through testinfra."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

EXPOSURE = re.compile(r"exposure level for \S+: ([0-9.]+)")


def exposure(host: Any, unit: str) -> float:
    """Systemd's judgement of a unit's sandbox: 0 is none, 10 everything."""
    found = EXPOSURE.search(host.check_output(f"systemd-analyze security --no-pager {unit}"))
    assert found, f"systemd-analyze says nothing about {unit}"
    return float(found.group(1))


def properties(host: Any, unit: str, *names: str) -> dict[str, str]:
    """Live properties of a unit."""
    text = host.check_output(f"systemctl show --property={','.join(names)} {shlex.quote(unit)}")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def listeners(host: Any, netns: str = "") -> set[tuple[str, int]]:
    """(address, port) of every TCP listener, of the machine or of a namespace on it."""
    inside = f"ip netns exec {shlex.quote(netns)} " if netns else ""
    lines = host.check_output(f"{inside}ss -H -l -t -n").splitlines()
    endpoints = (line.split()[3].rpartition(":") for line in lines)
    return {(address.strip("[]"), int(port)) for address, _, port in endpoints}


def ports(host: Any, netns: str = "") -> set[int]:
    """Ports of every TCP listener."""
    return {port for _, port in listeners(host, netns)}


def get(host: Any, url: str, netns: str = "") -> tuple[int, str]:
    """Status and body of a GET from the machine or from a namespace on it; 0: no answer."""
    inside = f"ip netns exec {shlex.quote(netns)} " if netns else ""
    done = host.run(f"{inside}curl -s -m 10 -w '\\n%{{http_code}}' {shlex.quote(url)}")
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body


def get_json(host: Any, url: str, netns: str = "") -> Any:
    """The body of a GET that has to be answered with 200."""
    status, body = get(host, url, netns)
    assert status == 200, f"{url}: {status} {body}"
    return json.loads(body)


def assert_service(host: Any, unit: str, *, exposure_at_most: float) -> None:
    """A unit is running, starts at boot, is supervised and sandboxed."""
    service = host.service(unit)
    journal = host.run(f"journalctl --no-pager -n 40 -u {unit}").stdout
    assert service.is_running, journal
    assert service.is_enabled
    state = properties(host, unit, "Type", "WatchdogUSec", "Restart", "NRestarts")
    assert state["Type"] == "notify"
    assert state["WatchdogUSec"] != "0"
    assert state["Restart"] == "always"
    assert state["NRestarts"] == "0", journal
    assert exposure(host, unit) <= exposure_at_most


def assert_file(host: Any, path: str, *, user: str, group: str, mode: int) -> None:
    """A regular file belongs to whom it should."""
    found = host.file(path)
    assert found.is_file
    assert (found.user, found.group, found.mode) == (user, group, mode)
