"""One node as a systemd-nspawn machine on an overlay of its image.

The machine's files survive a reboot (the overlay stays), its network does not: the namespace
lies outside of the machine, so it is wired anew before each start, or rules and addresses of
the last boot would still be in force.

Nothing is remembered about processes. A machine is found by its name in the arguments of
systemd-nspawn, its processes by its control group, so a lost state file changes nothing.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.driver import cgroup, host, names
from lab.driver.errors import MachineError

if TYPE_CHECKING:
    from lab.driver.plan import Node, Plan

NSPAWN_DIRECTORIES = (
    Path("/run/systemd/nspawn/propagate"),
    Path("/run/systemd/nspawn/unix-export"),
)
"""Where nspawn keeps a directory per machine."""
BOOT_SECONDS = 60.0
"""Until ssh answers. Half a second is usual; the rest is for a host that is busy otherwise."""
STOP_SECONDS = 30.0
"""For the units of a machine to stop in order, before it is killed."""
_POWEROFF = signal.SIGRTMIN + 4  # systemd(1): start poweroff.target
_RETRY_SECONDS = 0.02
_UNIT_SECONDS = 10.0
"""For systemd to unload a unit that has ended."""
# Writes each given cgroup.procs file, then becomes the command behind "--".
_JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'
_EXTRA_CAPABILITIES = "CAP_NET_ADMIN"
_OPEN_FILES = 524288
"""Debian's usual hard limit of open files, where the host lets us set it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Where a machine keeps its files."""

    directory: Path
    run: Path

    @property
    def merged(self) -> Path:
        """Root directory of the machine."""
        return self.directory / "merged"

    @property
    def console(self) -> Path:
        """What nspawn printed."""
        return self.directory / "console.log"

    @property
    def image(self) -> Path:
        """Names the image the overlay was made on."""
        return self.directory / "image"

    @property
    def host_key(self) -> Path:
        """Public host key, in OpenSSH format."""
        return self.directory / "host_key.pub"


def files_of(node: Node) -> Files:
    """Where this node's files are."""
    return Files(
        directory=names.STATE_ROOT / node.lab / "nodes" / node.name,
        run=names.RUN_ROOT / node.lab,
    )


def find_nspawn(name: str) -> int | None:
    """Process id of the systemd-nspawn that runs a machine."""
    for pid in host.process_ids():
        words = host.command_line(pid)
        if words and Path(words[0]).name == "systemd-nspawn" and f"--machine={name}" in words:
            return pid
    return None


def find_leader(name: str) -> int | None:
    """Process id, on the host, of a machine's PID 1."""
    nspawn = find_nspawn(name)
    found = host.children(nspawn) if nspawn else []
    return found[0] if found else None


def is_running(node: Node) -> bool:
    """Whether the machine's PID 1 is there and still has its nspawn."""
    return find_leader(node.object_name) is not None


def create(plan: Plan, node: Node, image: Path, authorized_key: str) -> None:
    """Make the overlay of a machine that has none, and put into it what tells it apart."""
    files = files_of(node)
    for part in ("upper", "work", "merged"):
        (files.directory / part).mkdir(parents=True, exist_ok=True)
    files.image.write_text(f"{image}\n")
    mount(node)
    root = files.merged
    (root / "etc/hostname").write_text(f"{node.name}\n")
    (root / "etc/machine-id").write_text(os.urandom(16).hex() + "\n")
    (root / "etc/hosts").write_text(_hosts(plan))
    keys = root / "root/.ssh/authorized_keys"
    keys.write_text(f"{authorized_key}\n")
    keys.chmod(0o600)
    secret = Ed25519PrivateKey.generate()
    key = root / "etc/ssh/ssh_host_ed25519_key"
    key.touch(mode=0o600)
    key.write_bytes(private_key_text(secret))
    files.host_key.write_text(public_key_text(secret))


def private_key_text(key: Ed25519PrivateKey) -> bytes:
    """A private key the way OpenSSH stores it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def public_key_text(key: Ed25519PrivateKey) -> str:
    """A public key the way OpenSSH writes it."""
    raw = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return raw.decode()


def _hosts(plan: Plan) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for node in plan.nodes:
        lines += [f"{node.address_v4} {node.name}", f"{node.address_v6} {node.name}"]
    return "\n".join(lines) + "\n"


def mount(node: Node) -> None:
    """Mount the overlay, unless it is mounted."""
    files = files_of(node)
    if files.merged.is_mount():
        return
    image = Path(files.image.read_text().strip())
    if not image.is_dir():
        raise MachineError(
            f"node {node.name!r}: its image {image} is gone; run `lab/lab rebuild {node.name}`"
        )
    host.mount_overlay(
        lower=image,
        upper=files.directory / "upper",
        work=files.directory / "work",
        target=files.merged,
    )


def start(node: Node) -> socket.socket:
    """Start the machine; return the socket its readiness is announced on."""
    files = files_of(node)
    files.run.mkdir(parents=True, exist_ok=True)
    mount(node)
    path = files.run / f"{node.name}.notify"
    path.unlink(missing_ok=True)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    notify.bind(str(path))
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "NOTIFY_SOCKET": str(path),
        # A plain cgroup v2 inside, as on any Debian, whatever the host has.
        "UNIFIED_CGROUP_HIERARCHY": "1",
        # /proc/sys/net is the machine's own and writable; the rest of /proc/sys is the host's.
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        "SYSTEMD_NSPAWN_LOCK": "0",
    }
    with files.console.open("ab") as console:
        subprocess.Popen(
            _launcher(node, environment),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=environment,
            start_new_session=True,
        )
    return notify


def _launcher(node: Node, environment: dict[str, str]) -> list[str]:
    """The command that starts nspawn in a control group of its own."""
    name = node.object_name
    nspawn = [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--settings=no",
        "--boot",
        f"--directory={files_of(node).merged}",
        f"--machine={name}",
        f"--network-namespace-path=/run/netns/{name}",
        f"--capability={_EXTRA_CAPABILITIES}",
        "--console=pipe",
        "--notify-ready=yes",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        *_rlimit(),
    ]
    if not host.has_systemd():
        joins = [str(path) for path in cgroup.create(name)]
        return ["sh", "-c", _JOIN, "join-cgroup", *joins, "--", *nspawn]
    passed = [f"--setenv={key}={value}" for key, value in environment.items()]
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={name}",
        "--property=Delegate=yes",
        "--property=KillMode=mixed",
        "--property=SuccessExitStatus=133",
        "--property=TasksMax=16384",
        f"--property=StandardOutput=append:{files_of(node).console}",
        f"--property=StandardError=append:{files_of(node).console}",
        *[word for word in passed if "UNIFIED_CGROUP" not in word],
        *nspawn,
    ]


def _rlimit() -> list[str]:
    """Raise the limit of open files to Debian's; without CAP_SYS_RESOURCE the host's holds."""
    effective = next(
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapEff:")
    )
    may_raise = int(effective, 16) >> 24 & 1  # CAP_SYS_RESOURCE, linux/capability.h
    return [f"--rlimit=RLIMIT_NOFILE=1024:{_OPEN_FILES}"] if may_raise else []


def wait_ready(node: Node, notify: socket.socket) -> None:
    """Wait until the machine's default target is reached and its sshd answers."""
    deadline = time.monotonic() + BOOT_SECONDS
    with notify:
        while True:
            notify.settimeout(max(0.01, min(1.0, deadline - time.monotonic())))
            try:
                message = notify.recv(4096).decode(errors="replace")
            except TimeoutError:
                message = ""
            if "READY=1" in message.splitlines():
                break
            if not message and find_nspawn(node.object_name) is None:
                raise MachineError(f"node {node.name!r} did not start: {_console_tail(node)}")
            if time.monotonic() > deadline:
                raise MachineError(
                    f"node {node.name!r} did not boot in {BOOT_SECONDS:.0f} s:"
                    f" {_console_tail(node)}"
                )
    wait_ssh(node, deadline)


def wait_ssh(node: Node, deadline: float) -> None:
    """Wait until the node's sshd sends its banner; `deadline` on the monotonic clock."""
    while not answers_ssh(node):
        if time.monotonic() > deadline:
            raise MachineError(
                f"node {node.name!r} runs, but no sshd answers at {node.address_v4};"
                f" see `lab/lab logs {node.name}` and {files_of(node).console}"
            )
        time.sleep(_RETRY_SECONDS)


def answers_ssh(node: Node) -> bool:
    """Whether the node's sshd sends its banner now."""
    try:
        with socket.create_connection((node.address_v4, 22), timeout=0.5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _console_tail(node: Node) -> str:
    console = files_of(node).console
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    return f"{' / '.join(lines[-5:]) or 'nothing on its console'} ({console})"


def stop(node: Node) -> None:
    """Shut the machine down in order; kill it when it does not end."""
    nspawn, leader = find_nspawn(node.object_name), find_leader(node.object_name)
    if nspawn and leader:
        host.send_signal(leader, _POWEROFF)
        host.wait_gone(nspawn, timeout_seconds=STOP_SECONDS)
    kill(node.object_name)


def kill(name: str) -> None:
    """End a machine at once. PID 1 goes first: without nspawn it would live on unseen."""
    nspawn, leader = find_nspawn(name), find_leader(name)
    victims = [pid for pid in (leader, nspawn) if pid]
    left = host.kill_and_wait(victims)
    if host.has_systemd():
        _end_unit(name)
    else:
        # A process may have forked between the look and the signal: look again.
        while not left and (victims := sorted(cgroup.processes(name))):
            left = host.kill_and_wait(victims)
        if not left:
            cgroup.remove(name)
    if left:
        raise MachineError(f"machine {name!r}: processes {left} survive SIGKILL; see their state")
    # nspawn cleans these up only when it ends in order, and refuses to start over them.
    for directory in NSPAWN_DIRECTORIES:
        host.unmount_below(directory / name)
        shutil.rmtree(directory / name, ignore_errors=True)


def _end_unit(name: str) -> None:
    """End a machine's transient unit and wait until systemd has forgotten it.

    A unit that is still loaded would make the next start of the machine fail.
    """
    for verb in (["kill", "--signal=KILL"], ["stop"], ["reset-failed"]):
        subprocess.run(["systemctl", *verb, name], capture_output=True, check=False)
    deadline = time.monotonic() + _UNIT_SECONDS
    show = ["systemctl", "show", "--property=LoadState", "--value", name]
    while host.run(show, error=MachineError, remedy="is systemd in order?").strip() == "loaded":
        if time.monotonic() > deadline:
            raise MachineError(f"unit {name!r} does not go away; see `systemctl status {name}`")
        time.sleep(_RETRY_SECONDS)


def discard(node: Node) -> None:
    """Remove the files of a stopped machine."""
    files = files_of(node)
    host.unmount_below(files.directory)
    shutil.rmtree(files.directory, ignore_errors=True)
    (files.run / f"{node.name}.notify").unlink(missing_ok=True)
