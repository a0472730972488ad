"""``metalmesh probe``: the half of ``why --probe`` that runs on a node.

``connect`` opens a connection from a workload's namespace and ends it without sending a byte, so
that the application sees a client that changed its mind; ``log`` finds lines of the access log.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from metalmesh.net.netns import NETNS_DIR, open_netns, run_in_netns

if TYPE_CHECKING:
    import argparse

UNIT: Final = "metalmesh-ztunnel"
#: longer than a ztunnel tries to reach port 15008
CONNECT_SECONDS: Final = 15.0
LOG_SECONDS: Final = 5.0
_READ_BYTES: Final = 65536


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    connect = actions.add_parser("connect", help="open and end a connection; print what happened")
    connect.add_argument("netns", help="network namespace of the workload")
    connect.add_argument("address")
    connect.add_argument("port", type=int)
    log = actions.add_parser("log", help="print the first line of the access log with every word")
    log.add_argument("since", type=float, help="seconds since 1970")
    log.add_argument("word", nargs="+")


def run(args: argparse.Namespace) -> int:
    """Print one JSON object."""
    if args.action == "connect":
        found = connect(args.netns, args.address, args.port)
    else:
        found = {"line": find_line(args.since, args.word)}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def connect(netns: str, address: str, port: int) -> dict[str, Any]:
    """Connect from a namespace; how it ended, and the ztunnel's line about it."""
    since = time.time()
    fd = open_netns(NETNS_DIR / netns)
    source, result, received = run_in_netns(fd, lambda: _converse(address, port))
    line = find_line(since, [f"{source}", "outbound"]) if source else ""
    return {
        "since": since, "source": source, "result": result, "received": received, "line": line
    }  # fmt: skip


def _converse(address: str, port: int) -> tuple[str, str, str]:
    """Own ``ip:port``, how the connection ended, and the first bytes that came unasked."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    received = b""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect((address, port))
        except OSError as error:
            return "", f"not connected: {error.strerror or 'timed out'}", ""
        host, number, *_ = sock.getsockname()
        source = f"[{host}]:{number}" if family == socket.AF_INET6 else f"{host}:{number}"
        try:
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(_READ_BYTES):
                received = (received + data)[:_READ_BYTES]
        except TimeoutError:
            result = "still open: the application does not mind a silent client"
        except OSError as error:
            result = f"reset: {error.strerror}"
        else:
            result = "ended in good order"
    return source, result, received[:200].decode(errors="replace")


def find_line(since: float, words: list[str]) -> str:
    """The first line of the ztunnel's log since then that has every word; "" in time."""
    command = [
        *("journalctl", "--follow", "--lines=all", "--output=cat", f"--unit={UNIT}"),
        f"--since=@{int(since)}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as journal:
        try:
            assert journal.stdout is not None
            return _first(journal.stdout.fileno(), words)
        finally:
            journal.kill()


def _first(fd: int, words: list[str]) -> str:
    import os

    deadline = time.monotonic() + LOG_SECONDS
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            data = os.read(fd, _READ_BYTES)
            if not data:
                break
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                shown = line.decode(errors="replace")
                if all(word in shown for word in words):
                    return shown
    return ""
