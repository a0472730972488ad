"""``python -m tests.bench``: our pair of data workers against Envoy's, interleaved.

Each pair lives in two namespaces with a link between them and the same redirection in force.
Ours enforces policy, keeps metrics, writes its access log and preserves the client's address;
Envoy does none of these unless ``--duties`` has it log and authorize. Both share the machine's
processors with the load, so absolute figures mean little and ratios much.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    StringMatch,
)
from tests.bench import load
from tests.bench.interpreter import describe, node_python
from tests.bench.server import http_server
from tests.support import envoy
from tests.support.data_worker import capture_traffic, captured_pair
from tests.support.netns import Netns, netns_pair
from tests.support.pki import CertificateAuthority
from tests.support.waits import WAITS, wait_until

BULK, HTTP = 5201, 8080
Row = dict[str, Any]
TARGET = 0.8


@dataclass
class Side:
    """One of the pairs under test."""

    name: str
    client: Netns
    #: what the load generators dial
    server: str
    pids: list[int]


@dataclass(frozen=True)
class Measure:
    """One figure; larger is better unless ``less`` says otherwise."""

    name: str
    unit: str
    take: Callable[[Side, int], float]
    less: bool = False
    #: what a measurement of some seconds moves or serves, in GB or thousands; 0: nothing
    work: Callable[[float, int], float] = lambda value, seconds: value * seconds / 1000


def _bulk(streams: int, *, down: bool) -> Callable[[Side, int], float]:
    return lambda side, seconds: load.gigabits(
        side.client, side.server, BULK, streams=streams, down=down, seconds=seconds
    )


def _rate(connections: int, *, close: bool = False) -> Callable[[Side, int], float]:
    return lambda side, seconds: load.requests(
        side.client, side.server, HTTP, connections=connections, seconds=seconds, close=close
    )


def _latency(side: Side, seconds: int) -> float:
    return load.median_latency(side.client, side.server, HTTP, per_second=1000, seconds=seconds)


def _gigabytes(gigabits_per_second: float, seconds: int) -> float:
    return gigabits_per_second * seconds / 8


MEASURES = (
    Measure(
        "memory after load",
        "MB PSS",
        lambda side, _: load.pss_megabytes(side.pids),
        less=True,
        work=lambda *_: 0.0,
    ),
    Measure("throughput up, 1 stream", "Gb/s", _bulk(1, down=False), work=_gigabytes),
    Measure("throughput down, 1 stream", "Gb/s", _bulk(1, down=True), work=_gigabytes),
    Measure("throughput up, 8 streams", "Gb/s", _bulk(8, down=False), work=_gigabytes),
    Measure("throughput down, 8 streams", "Gb/s", _bulk(8, down=True), work=_gigabytes),
    Measure("requests, 1 connection", "1/s", _rate(1)),
    Measure("requests, 16 connections", "1/s", _rate(16)),
    Measure("requests, 64 connections", "1/s", _rate(64)),
    Measure("new connections", "1/s", _rate(16, close=True)),
    Measure(
        "median latency, 1000 requests/s",
        "µs",
        _latency,
        less=True,
        work=lambda _, seconds: seconds,
    ),
)


@contextlib.contextmanager
def applications(where: Netns, directory: Path, name: str) -> Iterator[None]:
    """A bulk and an HTTP server on a namespace's address."""
    bulk = where.popen(
        "iperf3", "-s", "-p", str(BULK), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with http_server(where, directory / f"app-{name}", HTTP):
            for port in (BULK, HTTP):
                wait_until(lambda port=port: _answers(where, port), WAITS["traffic"])
            yield
    finally:
        bulk.terminate()
        bulk.wait()


def _answers(where: Netns, port: int, address: str = "") -> bool:
    try:
        where.connect(address or where.address, port).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def our_side(directory: Path, python: str) -> Iterator[Side]:
    """Captured workloads with a policy that admits the client by name."""
    with captured_pair(python=python) as pair, applications(pair.server.where, directory, "ours"):
        for port in (BULK, HTTP):
            pair.route(port)
        principal = StringMatch(MatchKind.EXACT, pair.client.identity.removeprefix("spiffe://"))
        policy = Authorization(
            name="client",
            namespace="test",
            scope=PolicyScope.NAMESPACE,
            action=Action.ALLOW,
            rules=(((Match(principals=(principal,)),),),),
        )
        pair.destination.policies(pair.server, policy.to_dict())
        pids = [pair.source.process.pid, pair.destination.process.pid]
        yield Side("metalmesh", pair.client.where, pair.server.addresses[0], pids)


@contextlib.contextmanager
def envoy_side(directory: Path, *, duties: bool) -> Iterator[Side]:
    """Envoys with static configuration; with ``duties`` they log and authorize, as ours do."""
    ca = CertificateAuthority()
    client = "spiffe://cluster.local/ns/test/sa/client" if duties else ""
    for name in ("client", "server"):
        identity = f"spiffe://cluster.local/ns/test/sa/{name}"
        envoy.write_credentials(directory, name, ca.leaf(identity))
    with contextlib.ExitStack() as stack:
        one, other = stack.enter_context(netns_pair())
        stack.enter_context(applications(other, directory, "envoy"))
        ports = [BULK, HTTP]
        configs = (
            (
                other,
                "dst",
                envoy.destination_config(directory, other.address, ports, client=client),
            ),
            (one, "src", envoy.source_config(directory, other.address, ports, duties=duties)),
        )
        for where in (one, other):
            capture_traffic(where)
        pids = [stack.enter_context(envoy.envoy(w, directory, n, c)) for w, n, c in configs]
        for port in ports:
            wait_until(lambda port=port: _answers(one, port, other.address), WAITS["traffic"])
        yield Side("envoy", one, other.address, pids)


def measure(sides: list[Side], measures: list[Measure], rounds: int, seconds: int) -> list[Row]:
    """Every figure of every side, the sides taking turns within each round."""
    rows = []
    for number in range(rounds):
        for item in measures:
            for side in sides if number % 2 == 0 else reversed(sides):
                before = load.cpu_seconds(side.pids)
                value = item.take(side, seconds)
                used = load.cpu_seconds(side.pids) - before
                row = {"measure": item.name, "side": side.name, "value": value, "cpu": used}
                rows.append({**row, "round": number})
                print(f"{number} {item.name:28} {side.name:10} {value:10.2f}", file=sys.stderr)
    return rows


def summarize(rows: list[Row], measures: list[Measure], seconds: int) -> list[Row]:
    """Medians, the ratio of ours to Envoy's, and the processor time a unit of work costs."""
    table = []
    for item in measures:
        ours, theirs = (_median(rows, item.name, side, "value") for side in ("metalmesh", "envoy"))
        row: Row = {"measure": item.name, "unit": item.unit, "metalmesh": ours, "envoy": theirs}
        row["ratio"] = _ratio(rows, item)
        for side, value in (("metalmesh", ours), ("envoy", theirs)):
            work = item.work(value, seconds)
            cpu = _median(rows, item.name, side, "cpu")
            row[f"{side}_cpu"] = cpu / work * 1000 if work else 0.0
        table.append(row)
    return table


def _ratio(rows: list[Row], item: Measure) -> float:
    """Median of the rounds' ratios: neighbours in time share what else the machine did."""
    rounds: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["measure"] == item.name:
            rounds.setdefault(row["round"], {})[row["side"]] = row["value"]
    found = [side["metalmesh"] / side["envoy"] for side in rounds.values()]
    return statistics.median(1 / ratio if item.less else ratio for ratio in found)


def _median(rows: list[Row], name: str, side: str, field: str) -> float:
    chosen = (row[field] for row in rows if (row["measure"], row["side"]) == (name, side))
    return statistics.median(chosen)


def show(table: list[Row]) -> None:
    """The table in Markdown."""
    print("\n| measure | unit | metalmesh | envoy | ratio | processor ms per GB or 1000 |")
    print("|---|---|---|---|---|---|")
    for row in table:
        cost = "{metalmesh_cpu:.0f} against {envoy_cpu:.0f}".format(**row)
        cost = cost if row["envoy_cpu"] else "-"
        figures = "{metalmesh:.4g} | {envoy:.4g} | {ratio:.2f}".format(**row)
        print(f"| {row['measure']} | {row['unit']} | {figures} | {cost} |")


def main() -> int:
    """Run, print the table, write the JSON, fail below the target."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="length of one measurement")
    parser.add_argument("--only", default="", help="measures whose name contains this")
    parser.add_argument(
        "--duties", action="store_true", help="have Envoy, too, log connections and authorize them"
    )
    parser.add_argument("--release", default="trixie", help="Debian release whose Python is used")
    parser.add_argument("--python", default="", help="another Python for our data workers")
    parser.add_argument("--json", default="", help="write rows and table to this file")
    options = parser.parse_args()
    missing = [name for name in ("iperf3", "nginx", "wrk", "nft", "ip") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        parser.error(f"needs root and these commands: {', '.join(missing) or 'all found'}")
    measures = [item for item in MEASURES if options.only in item.name]
    with tempfile.TemporaryDirectory(prefix="mm-bench-") as path, contextlib.ExitStack() as stack:
        directory = Path(path)
        python = options.python or node_python(options.release, directory)
        duties = " with access log and policy" if options.duties else ""
        peers = f"data workers: Python {describe(python)}; {envoy.version()}{duties}"
        print(peers, file=sys.stderr)
        sides = [
            stack.enter_context(our_side(directory, python)),
            stack.enter_context(envoy_side(directory, duties=options.duties)),
        ]
        for side in sides:  # warm up: first connections, first certificates
            load.requests(side.client, side.server, HTTP, connections=2, seconds=1)
        rows = measure(sides, measures, options.rounds, options.seconds)
    table = summarize(rows, measures, options.seconds)
    print(f"\n{peers}")
    show(table)
    if options.json:
        result = {"peers": peers, "rows": rows, "table": table}
        Path(options.json).write_text(json.dumps(result, indent=1))
    slow = [row["measure"] for row in table if row["ratio"] < TARGET]
    if slow:
        print(f"below {TARGET} x Envoy: {', '.join(slow)}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
