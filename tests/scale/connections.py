"""``python -m tests.scale.connections``: a node that holds ten thousand open connections.

Our pair of data workers and Envoy's, one after the other, in namespaces: what an open connection
costs in memory, and what another connection's round trip takes while they are open.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.__main__ import HTTP, Side, envoy_side, our_side
from tests.bench.load import pss_megabytes

Row = dict[str, Any]
_REQUEST = b"GET / HTTP/1.1\r\nhost: scale\r\n\r\n"
_ROUND_TRIPS = 2000


def ask(sock: socket.socket) -> None:
    """One request and its whole answer."""
    sock.sendall(_REQUEST)
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = sock.recv(65536)
        if not chunk:
            raise ConnectionError("closed instead of an answer")
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    left = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) - len(body)
    while left > 0:
        left -= len(sock.recv(65536))


@contextlib.contextmanager
def crowd(side: Side, count: int) -> Iterator[None]:
    """So many connections that have served a request and stay open."""
    made: list[socket.socket] = []

    def fill() -> None:
        while len(made) < count:
            made.append(socket.create_connection((side.server, HTTP), 10))
            ask(made[-1])

    try:
        side.client.do(fill)
        yield
    finally:
        for sock in made:
            sock.close()


def round_trips(side: Side) -> tuple[float, float]:
    """Median and 99th percentile of requests on one connection, microseconds."""
    with side.client.connect(side.server, HTTP) as sock:
        times = []
        for _ in range(_ROUND_TRIPS):
            began = time.perf_counter()
            ask(sock)
            times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def measure(make: Callable[[Path], contextlib.AbstractContextManager[Side]], count: int) -> Row:
    """One pair."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mm-scale-")))
        side = stack.enter_context(make(directory))
        with crowd(side, 100):  # warm up
            pass
        before = pss_megabytes(side.pids)
        quiet = round_trips(side)
        began = time.monotonic()
        with crowd(side, count):
            opened = time.monotonic() - began
            megabytes = pss_megabytes(side.pids)
            crowded = round_trips(side)
    return {
        "pair": side.name,
        "connections": count,
        "open_seconds": opened,
        "megabytes_before": before,
        "megabytes": megabytes,
        "kilobytes_each": (megabytes - before) * 1024 / count,
        "median_us": {"alone": quiet[0], "crowded": crowded[0]},
        "p99_us": {"alone": quiet[1], "crowded": crowded[1]},
    }


def show(rows: list[Row]) -> None:
    """The table in Markdown."""
    print("| pair | connections | MB PSS before | with them | kB each | median us | p99 us |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        figures = "{megabytes_before:.0f} | {megabytes:.0f} | {kilobytes_each:.1f}".format(**row)
        times = " | ".join(
            f"{row[key]['alone']:.0f}, crowded {row[key]['crowded']:.0f}"
            for key in ("median_us", "p99_us")
        )
        print(f"| {row['pair']} | {row['connections']} | {figures} | {times} |")


def main() -> int:
    """Measure both pairs; print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale.connections", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--json", default="", help="write the rows to this file")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: it makes network namespaces")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = []
    for make in (our_side, envoy_side):
        print(f"{make.__name__} ...", file=sys.stderr)
        rows.append(measure(make, options.connections))
    show(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
