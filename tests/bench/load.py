"""Load generators (iperf3 and wrk) and what the kernel says a process costs."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import time
from pathlib import Path

from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until

TICKS = os.sysconf("SC_CLK_TCK")


def gigabits(
    where: Netns, address: str, port: int, *, streams: int, down: bool, seconds: int
) -> float:
    """Throughput through a path, Gb/s; ``down`` is from the server to the client."""
    command = ["iperf3", "-c", address, "-p", str(port), "-P", str(streams), "-t", str(seconds)]
    command += ["-J", *(["-R"] if down else [])]

    def measured() -> float:
        process = where.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        output, _ = process.communicate(timeout=seconds + 20)
        result = json.loads(output)  # also when it fails, with the reason
        if "busy" in result.get("error", ""):
            return 0.0  # it is still ending the measurement before this one
        if "error" in result:
            raise RuntimeError(f"iperf3 to {address} port {port}: {result['error']}")
        return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9

    return wait_until(measured, WAITS["traffic"], what="a free iperf3 server")


def requests(
    where: Netns, address: str, port: int, *, connections: int, seconds: int, close: bool = False
) -> float:
    """HTTP requests per second of 1 KiB answers; ``close`` makes a connection for each."""
    command = ["wrk", "-t1", "-c", str(connections), "-d", f"{seconds}s"]
    if close:
        command += ["-H", "Connection: close"]
    output = where.run(*command, f"http://{address}:{port}/", timeout_seconds=seconds + 20)
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if not found or "Non-2xx" in output:
        raise RuntimeError(f"wrk on {address} port {port}: no good answers:\n{output}")
    return float(found[1])


def median_latency(
    where: Netns, address: str, port: int, *, per_second: int, seconds: int
) -> float:
    """Microseconds half of the requests of one connection take, at a steady rate.

    The rate leaves the processors idle in between, as a quiet service does.
    """
    request = f"GET / HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
    taken = []
    with where.connect(address, port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        due = time.perf_counter()
        for _ in range(per_second * seconds):
            due += 1 / per_second
            time.sleep(max(0.0, due - time.perf_counter()))
            sent_at = time.perf_counter()
            sock.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer or not answer.endswith(b"x" * 1024):
                part = sock.recv(65536)
                if not part:
                    raise RuntimeError(f"{address} port {port} ended the connection")
                answer += part
            taken.append(time.perf_counter() - sent_at)
    return statistics.median(taken) * 1e6


def cpu_seconds(pids: list[int]) -> float:
    """Processor time the processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def pss_megabytes(pids: list[int]) -> float:
    """Memory of the processes, shared pages counted in proportion."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024
