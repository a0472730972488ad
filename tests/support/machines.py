"""The machines of a lab as tests use them: commands over ssh, files, journals, namespaces.

Commands go through testinfra and ssh, as an operator's would. Files and network namespaces are
reached through the machine's PID 1, which costs microseconds: what is timed is the mesh.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import testinfra
import yaml

from lab.driver import Lab, machine
from tests.support.capture import Link
from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until


def netns_unit(netns: str) -> str:
    """The unit that makes a workload's namespace."""
    return f"metalmesh-netns@{netns}.service"


class Machine:
    """One node of the lab."""

    def __init__(self, lab: Lab, name: str, controls: Path) -> None:
        self.name = name
        self._node = lab.plan.node(name)
        self._leader = 0
        options = " ".join(
            [
                *map(shlex.quote, lab.ssh_options()),
                "-o ControlMaster=auto",
                "-o ControlPersist=60s",
                f"-o ControlPath={controls}/%C",
            ]
        )
        #: testinfra's view of the machine.
        self.host = testinfra.get_host(
            f"ssh://root@{self.address}", ssh_extra_args=options, controlpersist=0
        )

    @property
    def address(self) -> str:
        """IPv4 address in the underlay."""
        return self._node.address_v4

    @property
    def object_name(self) -> str:
        """The machine's name on this host."""
        return self._node.object_name

    @property
    def leader(self) -> int:
        """Process id of the machine's PID 1; found anew after a reboot."""
        if not self._leader or not Path(f"/proc/{self._leader}/root/etc").exists():
            found = machine.find_leader(self.object_name)
            if found is None:
                raise RuntimeError(f"{self.name} does not run; `lab/lab up` starts it")
            self._leader = found
        return self._leader

    def path(self, absolute: str) -> Path:
        """A file of the machine, seen from this host."""
        return Path(f"/proc/{self.leader}/root{absolute}")

    def config(self, component: str) -> dict[str, Any]:
        """A service's configuration file (``ztunnel``, ``node``, ``controlplane``)."""
        return dict(yaml.safe_load(self.path(f"/etc/metalmesh/{component}.yaml").read_text()))

    def sh(self, command: str) -> str:
        """Run a shell command over ssh; return what it printed, fail when it fails."""
        done = self.host.run(command)
        if done.rc:
            raise AssertionError(f"{self.name}: {command}: exit {done.rc}: {done.stderr}")
        return str(done.stdout)

    @property
    def netns(self) -> Netns:
        """The machine's own network namespace."""
        return Netns(Path("/run/netns") / self.object_name, self.address)

    def inner_netns(self, name: str, address: str) -> Netns:
        """A workload's namespace, which the machine keeps in its own /run/netns."""
        return Netns(self.path(f"/run/netns/{name}"), address)

    def disconnect(self) -> None:
        """End the shared ssh connection: over a reboot it would hang."""
        backend = self.host.backend
        backend.run_local(f"ssh {backend.ssh_extra_args} -O exit root@{self.address}")

    def restart(self, unit: str) -> None:
        """Restart a unit; returns when systemd says that it is up again."""
        self.sh(f"systemctl restart {unit}")

    def start_workload(self, netns: str) -> None:
        """Make a workload's namespace, now and at every boot."""
        self.sh(f"systemctl enable -q --now {netns_unit(netns)}")

    def stop_workload(self, netns: str) -> None:
        """Remove a workload's namespace."""
        self.sh(f"systemctl disable -q --now {netns_unit(netns)}")

    def unit(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.sh(f"systemctl show {unit} " + " ".join(f"-p {name}" for name in properties))
        return dict(line.split("=", 1) for line in text.splitlines())

    def get(self, port: int, path: str) -> str:
        """Fetch a page of one of the machine's admin or metrics ports from this host."""
        with urllib.request.urlopen(f"http://{self.address}:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def journal(self, unit: str) -> Journal:
        """The journal of a unit from now on."""
        cursor = self.sh(
            f"journalctl --sync; journalctl -u {unit} -n 1 -o json --output-fields=__CURSOR"
        ).strip()
        return Journal(self, unit, json.loads(cursor)["__CURSOR"] if cursor else "")


@dataclasses.dataclass(frozen=True)
class Journal:
    """Lines of a unit after a moment."""

    machine: Machine
    unit: str
    cursor: str

    def lines(self) -> list[str]:
        """What was logged since."""
        after = f"--after-cursor={shlex.quote(self.cursor)}" if self.cursor else ""
        return self.machine.sh(f"journalctl -u {self.unit} -o cat {after}").splitlines()

    def wait(self, *words: str) -> str:
        """The first line since then that holds all the words, waiting for it to appear."""

        def found() -> str:
            return next((line for line in self.lines() if all(w in line for w in words)), "")

        return wait_until(
            found, WAITS["log_line"], what=f"{self.machine.name}: {self.unit} logging {words}"
        )


class Machines:
    """All machines of a lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._controls = tempfile.TemporaryDirectory(prefix="mm-ssh-")
        controls = Path(self._controls.name)
        self.all = {node.name: Machine(lab, node.name, controls) for node in lab.plan.nodes}

    def __getitem__(self, name: str) -> Machine:
        return self.all[name]

    def group(self, name: str) -> list[Machine]:
        """Machines of an inventory group."""
        return [self.all[node.name] for node in self.lab.plan.nodes if name in node.groups]

    def link(self, name: str) -> Link:
        """The fabric's end of a machine's link."""
        plan = self.lab.plan
        return Link(Path("/run/netns") / plan.fabric, plan.node(name).link)

    def close(self) -> None:
        """End the ssh connections kept open for the tests."""
        for entry in self.all.values():
            entry.disconnect()
        self._controls.cleanup()


def timed(action: Callable[[], object], seen: Callable[[], object], bound: str) -> float:
    """Seconds from the start of an action until its effect is seen."""
    started_at = time.monotonic()
    action()
    wait_until(seen, WAITS[bound])
    return time.monotonic() - started_at
