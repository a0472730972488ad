"""A lab: bring it up, take it down, restart its nodes, reach them.

lab = Lab.open("default")
lab.plan.node("node1").address_v4
lab.ssh_command("node1", "systemctl is-active ssh")
"""

from __future__ import annotations

import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from lab.driver import image, machine, names, network, preflight, state, traces
from lab.driver.host import Progress
from lab.driver.plan import Node, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")
R = TypeVar("R")


class Lab:
    """A lab that was begun; `up` makes one, `open` finds one."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self._progress = progress

    @classmethod
    def open(cls, name: str = state.DEFAULT_LAB, *, quiet: bool = True) -> Lab:
        """The lab of that name; LabError when there is none."""
        return cls(state.require_plan(name), Progress(name, quiet=quiet))

    @classmethod
    def up(
        cls,
        name: str = state.DEFAULT_LAB,
        inventory: Path = state.DEFAULT_INVENTORY,
        *,
        quiet: bool = False,
    ) -> Lab:
        """Make the lab as described, or complete it. What runs already is left alone."""
        names.check_lab_name(name)
        progress = Progress(name, quiet=quiet)
        preflight.check_host()
        with state.lock(name, progress):
            lab = cls(state.save_plan(name, state.read_inventory(inventory)), progress)
            lab._complete()
        return lab

    @property
    def directory(self) -> Path:
        """Where the lab keeps its key, known hosts and overlays."""
        return state.directory(self.plan.name)

    def ssh_options(self) -> list[str]:
        """Options that make ssh and scp use the lab's key and host keys, and nothing else."""
        options = {
            "IdentityFile": f"{self.directory}/id_ed25519",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f"{self.directory}/known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": "5",
            "LogLevel": "ERROR",
        }
        return ["-F", "none", *(f"-o{key}={value}" for key, value in options.items())]

    def ssh_command(self, node: str, command: str | Sequence[str] = ()) -> list[str]:
        """The command line that runs a command on a node as root; a list is quoted."""
        address = self.plan.node(node).address_v4
        text = command if isinstance(command, str) else shlex.join(command)
        return ["ssh", *self.ssh_options(), f"root@{address}", *([text] if text else [])]

    def capture_command(self, node: str, *arguments: str) -> list[str]:
        """The command line of a tcpdump on the fabric's side of a node's link.

        Immediate mode and a large buffer, or the last packets of a burst are lost.
        """
        link = self.plan.node(node).link
        options = ["-i", link, "-n", "-U", "--immediate-mode", "-B", "16384", *arguments]
        return ["ip", "netns", "exec", self.plan.fabric, "tcpdump", *options]

    def _complete(self) -> None:
        started_at = time.monotonic()
        state.write_ansible_variables(self.plan)
        self._remove_unlisted()
        self._tell_outdated()
        broken = [node for node in self.plan.nodes if not self._is_in_order(node)]
        if network.exists(self.plan.fabric):
            network.route_nodes(self.plan)
        if not broken:
            self._progress(f"all {len(self.plan.nodes)} nodes are up")
            return
        releases = sorted({node.image for node in self.plan.nodes})
        images = dict(zip(releases, self._each(releases, self._ensure_image), strict=True))
        key = state.ensure_key(self.plan.name)
        network.wire_fabric(self.plan)
        for node in broken:
            machine.kill(node.object_name)
            if not machine.files_of(node).host_key.exists():
                machine.discard(node)
                machine.create(self.plan, node, images[node.image], key)
        state.write_known_hosts(self.plan)
        self._boot(broken)
        seconds = time.monotonic() - started_at
        self._progress(f"{', '.join(node.name for node in broken)}: up after {seconds:.1f} s")

    def _ensure_image(self, release: str) -> Path:
        return image.ensure(release, self._progress)

    def _is_in_order(self, node: Node) -> bool:
        """Whether a node runs, is wired, and answers."""
        return (
            network.exists(self.plan.fabric)
            and machine.is_running(node)
            and machine.answers_ssh(node)
        )

    def _tell_outdated(self) -> None:
        """Name nodes that stand on another image than they would get today."""
        for node in self.plan.nodes:
            note = machine.files_of(node).image
            if note.exists() and note.read_text().strip() != str(image.path_of(node.image)):
                self._progress(
                    f"{node.name}: has an older image; `lab/lab rebuild {node.name}` renews it"
                )

    def _remove_unlisted(self) -> None:
        """Take away nodes that the inventory no longer lists."""
        listed = {node.name for node in self.plan.nodes}
        nodes = self.directory / "nodes"
        for path in sorted(nodes.iterdir()) if nodes.is_dir() else []:
            if path.name not in listed:
                self._progress(f"{path.name}: no longer in the inventory, removing it")
                self._remove_node(path.name)

    def _remove_node(self, name: str) -> None:
        unlisted = Node(
            lab=self.plan.name, number=self.plan.number, name=name, index=0, image="",
            groups=(), routes=(),
        )  # fmt: skip
        machine.kill(unlisted.object_name)
        network.unwire_node(self.plan, unlisted)
        machine.discard(unlisted)

    def _boot(self, nodes: Sequence[Node]) -> None:
        """Wire and start nodes, then wait for all of them side by side."""
        for node in nodes:
            network.wire_node(self.plan, node)
        started = [(node, machine.start(node)) for node in nodes]
        self._each(started, lambda pair: machine.wait_ready(*pair))

    @staticmethod
    def _each(items: Sequence[T], action: Callable[[T], R]) -> list[R]:
        with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
            return list(pool.map(action, items))

    def reboot(self, nodes: Sequence[str], *, hard: bool = False) -> None:
        """Restart nodes: files stay, the network namespace and everything in it is made anew.

        In order by default; `hard` is the power cord.
        """
        with state.lock(self.plan.name, self._progress):
            chosen = [self.plan.node(name) for name in nodes]
            started_at = time.monotonic()
            self._each(chosen, self._kill if hard else machine.stop)
            self._boot(chosen)
            seconds = time.monotonic() - started_at
            self._progress(f"{', '.join(nodes)}: rebooted in {seconds:.1f} s")

    def kill(self, nodes: Sequence[str]) -> None:
        """Pull the power cord of nodes; `up` starts them again, with their files."""
        with state.lock(self.plan.name, self._progress):
            self._each([self.plan.node(name) for name in nodes], self._kill)

    @staticmethod
    def _kill(node: Node) -> None:
        machine.kill(node.object_name)

    def rebuild(self, nodes: Sequence[str] = ()) -> None:
        """Replace nodes, all by default, by fresh ones with the same addresses."""
        with state.lock(self.plan.name, self._progress):
            chosen = [self.plan.node(name) for name in nodes] or list(self.plan.nodes)
            traces.close_ssh(self.plan.number)
            self._each(chosen, self._kill)
            for node in chosen:
                machine.discard(node)
            self._complete()

    def is_up(self, node: str) -> bool:
        """Whether a node runs and answers."""
        return self._is_in_order(self.plan.node(node))


def down(name: str | None, *, quiet: bool = False) -> None:
    """Remove a lab, or all labs, whatever state they are in, and verify that nothing is left."""
    if name is None:
        for lab in traces.labs():
            down(lab, quiet=quiet)
        return
    progress = Progress(names.check_lab_name(name), quiet=quiet)
    with state.lock(name, progress):
        before = traces.find(name).lines()
        traces.remove(name)
    progress("removed" if before else "there is no such lab; nothing to remove")
