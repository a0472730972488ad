#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

"""Several systemd units in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: Several systemd units in one round trip, ready when it returns
version_added: 0.1.0
author:
  - The metalmesh authors (@metalmesh)
description:
  - Enables, starts, stops and disables a set of units, reads changed unit files again when systemd
    says it has to, and waits until the services answer on their readiness address.
  - Unlike M(ansible.builtin.systemd_service) it takes many units, can hold the instances of a
    template unit to exactly the listed ones, and tells in check mode what would be started although
    the unit file is not there yet.
options:
  units:
    description: The units.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the unit; V(.service) may be left out.
        type: str
        required: true
      state:
        description: Whether it runs. Left out, that stays as it is.
        type: str
        choices: [started, stopped]
      enabled:
        description: Whether it starts at boot. Left out, nothing is changed about that.
        type: bool
      restart_running:
        description: Restart it when it runs already, for one whose surroundings changed.
        type: bool
        default: false
      ready_url:
        description: Address on the node that answers 200 when the service is ready.
        type: str
  purge_template:
    description:
      - A template unit, such as V(metalmesh-netns@.service). Its instances that are not in O(units)
        are stopped and disabled.
    type: str
    default: ''
  ready_timeout_seconds:
    description: How long to wait for all O(units[].ready_url) together, in seconds.
    type: float
    default: 30
extends_documentation_fragment:
  - metalmesh.ambient._attributes
seealso:
  - module: ansible.builtin.systemd_service
"""

EXAMPLES = r"""
- name: Run the ztunnel
  metalmesh.ambient.units:
    units:
      - name: metalmesh-ztunnel
        state: started
        enabled: true
        ready_url: http://127.0.0.1:15021/healthz/ready

- name: Keep exactly these network namespaces
  metalmesh.ambient.units:
    units:
      - {name: metalmesh-netns@demo-sleep.service, state: started, enabled: true}
    purge_template: metalmesh-netns@.service
"""

RETURN = r"""
plan:
  description: The units that were (or in check mode would be) changed, per verb.
  type: dict
  returned: always
  sample: {enable: [metalmesh-ztunnel.service], start: [metalmesh-ztunnel.service]}
"""

import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.metalmesh.ambient.plugins.module_utils import _units
from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError

#: pause between two looks at a service that is not ready yet
READY_POLL_SECONDS = 0.05
#: how much of a failed unit's journal is shown
JOURNAL_LINES = 15

ARGUMENT_SPEC: dict[str, Any] = {
    "units": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "stopped"]},
            "enabled": {"type": "bool"},
            "restart_running": {"type": "bool", "default": False},
            "ready_url": {"type": "str"},
        },
    },
    "purge_template": {"type": "str", "default": ""},
    "ready_timeout_seconds": {"type": "float", "default": 30},
}


def read_units(module: AnsibleModule, names: list[str], template: str) -> dict[str, Any]:
    """Read the live properties of the named units and of a template's instances."""
    found = list(names)
    if template:
        pattern = template.replace("@.", "@*.")
        for verb in ("list-units", "list-unit-files"):
            command = ["systemctl", verb, "--plain", "--no-legend", "--full"]
            command += ["--all"] if verb == "list-units" else []
            _, out, _ = module.run_command([*command, pattern])
            found += [line.split()[0] for line in out.splitlines() if line.strip()]
        # An enabled instance that is not running is known only by its link.
        _, out, _ = module.run_command(
            [
                "find",
                "/etc/systemd/system",
                "-path",
                "*.wants/*",
                "-name",
                pattern,
                "-printf",
                "%f\n",
            ]
        )
        found += out.split()
    unique = sorted({name for name in found if name != template})
    if not unique:
        return {}
    command = ["systemctl", "show", f"--property={','.join(_units.PROPERTIES)}", "--", *unique]
    code, out, err = module.run_command(command)
    if code != 0:
        raise ModuleError(f"systemctl show failed: {err.strip()}", "Is systemd running here?")
    return _units.parse_show(out)


def systemctl(module: AnsibleModule, verb: str, names: list[str]) -> None:
    """Run one verb on several units; on failure say why, with the journal of what failed."""
    if not names and verb != "daemon-reload":
        return
    code, _, err = module.run_command(["systemctl", verb, *(["--", *names] if names else [])])
    if code == 0:
        return
    failed = []
    for name in names:
        state = module.run_command(["systemctl", "is-failed", "--quiet", "--", name])[0]
        if state == 0 or len(names) == 1:
            failed.append(f"--- {name}\n{journal(module, name)}")
    raise ModuleError(f"systemctl {verb} failed: {err.strip()}\n" + "\n".join(failed))


def journal(module: AnsibleModule, name: str) -> str:
    """Return the last lines a unit logged."""
    command = [
        "journalctl",
        "--no-pager",
        "--output=cat",
        f"--lines={JOURNAL_LINES}",
        "--unit",
        name,
    ]
    return str(module.run_command(command)[1])


def answer_of(url: str) -> str:
    """Return an empty string when ``url`` answers 200, otherwise what it did instead."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return ""
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read(200).decode(errors='replace').strip()}"
    except OSError as error:
        return str(error)


def wait_until_ready(module: AnsibleModule) -> None:
    """Wait until every unit with a readiness address answers there."""
    deadline = time.monotonic() + module.params["ready_timeout_seconds"]
    for item in module.params["units"]:
        if not item["ready_url"] or item["state"] == "stopped":
            continue
        answer = answer_of(item["ready_url"])
        while answer and time.monotonic() < deadline:
            time.sleep(READY_POLL_SECONDS)
            answer = answer_of(item["ready_url"])
        if answer:
            raise ModuleError(
                f"{item['name']} is not ready after {module.params['ready_timeout_seconds']:g} s:"
                f" {item['ready_url']}: {answer}\n{journal(module, item['name'])}"
            )


def run(module: AnsibleModule) -> dict[str, Any]:
    """Plan, apply, wait; return the module's result."""
    wanted = [{**item, "name": _units.full_name(item["name"])} for item in module.params["units"]]
    module.params["units"] = wanted
    live = read_units(module, [item["name"] for item in wanted], module.params["purge_template"])
    plan = _units.plan_units(live, wanted, module.params["purge_template"])
    if not module.check_mode:
        if plan.reload:
            systemctl(module, "daemon-reload", [])
        for verb in _units.VERBS:
            systemctl(module, verb, getattr(plan, verb))
        wait_until_ready(module)
    return {
        "changed": plan.changed,
        "plan": {verb: getattr(plan, verb) for verb in _units.VERBS},
        "diff": plan.to_diff(),
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        result = run(module)
    except ModuleError as error:
        module.fail_json(msg=str(error))
    else:
        module.exit_json(**result)


if __name__ == "__main__":
    main()
