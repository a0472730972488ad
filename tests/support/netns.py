"""Network namespaces for tests: entering one, running commands in one, a pair with a link.

Names are unique per call and start with ``mm-t``; everything is removed at the end of the block.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute, netns

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NODAD = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def in_netns(path: Path, action: Callable[[], T]) -> T:
    """Run an action in a thread of its own that has entered the namespace at this path."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            enter_netns(path)
            outcome.append(action())
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def enter_netns(path: Path) -> None:
    """Move the calling thread into the namespace at this path."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.setns(handle, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"cannot enter network namespace {path}: {os.strerror(code)}")
    finally:
        os.close(handle)


@dataclasses.dataclass(frozen=True)
class Netns:
    """A network namespace and the addresses tests use in it."""

    path: Path
    """A file that stands for the namespace (``/run/netns/NAME``, ``/proc/PID/ns/net``)."""
    address: str
    interface: str = "eth0"

    def do(self, action: Callable[[], T]) -> T:
        """Run an action inside."""
        return in_netns(self.path, action)

    def popen(self, *command: str, **options: object) -> subprocess.Popen[bytes]:
        """Start a command inside; the child is forked by a thread that has entered."""
        return self.do(lambda: subprocess.Popen(command, **options))  # type: ignore[call-overload]

    def run(self, *command: str, timeout_seconds: float = 30.0) -> str:
        """Run a command inside to its end; return its output, raise when it fails."""
        done = self.do(
            lambda: subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_seconds, check=False
            )
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def connect(
        self, address: str, port: int, *, timeout_seconds: float = 5.0, source_port: int = 0
    ) -> socket.socket:
        """Open a TCP connection from inside."""
        source = ("", source_port) if source_port else None
        return self.do(lambda: socket.create_connection((address, port), timeout_seconds, source))

    def listen(self, port: int = 0, *, address: str | None = None) -> socket.socket:
        """Open a listening TCP socket inside."""
        return self.do(
            lambda: socket.create_server((self.address if address is None else address, port))
        )


def create_netns(name: str) -> None:
    """Make a named namespace; pyroute2 would fork, which gRPC's threads do not survive."""
    subprocess.run(["ip", "netns", "add", name], check=True)


@contextlib.contextmanager
def netns_pair() -> Iterator[tuple[Netns, Netns]]:
    """Two namespaces joined by one veth (``eth0`` in both), removed at the end."""
    unique = secrets.token_hex(4)
    names = [f"mm-t{unique}-{side}" for side in ("a", "b")]
    made: list[str] = []
    try:
        for name in names:
            create_netns(name)
            made.append(name)
        yield _wire(Path("/run/netns") / names[0], Path("/run/netns") / names[1])
    finally:
        for name in made:
            netns.remove(name)


def _wire(one: Path, other: Path) -> tuple[Netns, Netns]:
    handle = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with IPRoute(netns=str(one)) as link:
            link.link(
                "add", ifname="eth0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": handle}
            )
    finally:
        os.close(handle)
    pair = (Netns(one, "198.18.0.1"), Netns(other, "198.18.0.2"))
    for side in pair:
        with IPRoute(netns=str(side.path)) as link:
            index = link.link_lookup(ifname="eth0")[0]
            link.link("set", index=link.link_lookup(ifname="lo")[0], state="up")
            link.addr("add", index=index, address=side.address, prefixlen=30)
            link.link("set", index=index, state="up")
    return pair
