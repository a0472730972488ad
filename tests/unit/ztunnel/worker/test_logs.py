"""Log lines: Istio's form to the letter, written together, never waiting."""

from __future__ import annotations

import json
import os
import re
import socket

import pytest

from metalmesh.ztunnel.worker import logs
from metalmesh.ztunnel.worker.logs import LogWriter
from metalmesh.ztunnel.worker.loop import Loop

FIELDS = [("src.addr", "10.0.0.1:5", False), ("src.workload", "web", True)]


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def read(fd: int) -> str:
    try:
        return os.read(fd, 1 << 20).decode()
    except BlockingIOError:
        return ""


def test_plain_line_has_tabs_and_quotes(pipe) -> None:
    """Timestamp TAB level TAB target TAB message TAB fields (istio-facts 8.2)."""
    log = LogWriter(Loop(), pipe[1])
    log.line("info", "access", "connection complete", FIELDS)
    log.flush()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\tinfo\taccess\tconnection complete\t"
        r'src\.addr=10\.0\.0\.1:5 src\.workload="web"\n',
        read(pipe[0]),
    )


def test_json_line_has_scope_and_fields(pipe) -> None:
    log = LogWriter(Loop(), pipe[1])
    log.configure("info", "json")
    log.line("error", "access", "connection complete", FIELDS)
    log.flush()
    body = json.loads(read(pipe[0]))
    assert list(body) == ["level", "time", "scope", "message", "src.addr", "src.workload"]
    assert (body["level"], body["scope"], body["src.workload"]) == ("error", "access", "web")


@pytest.mark.parametrize(
    ("level", "written"),
    [("debug", 4), ("info", 3), ("warn", 2), ("error", 1), ("off", 0), ("nonsense", 3)],
)
def test_level_decides_what_is_written(pipe, level: str, written: int) -> None:
    log = LogWriter(Loop(), pipe[1])
    log.set_level(level)
    for name in ("debug", "info", "warn", "error"):
        assert log.wants(name) == (logs.LEVELS[name] >= log.threshold)
        log.line(name, "t", "m")
    log.flush()
    assert read(pipe[0]).count("\n") == written


def test_values_cannot_forge_lines_or_fields(pipe) -> None:
    """Peers choose some values (baggage): quotes and line ends stay inside them."""
    log = LogWriter(Loop(), pipe[1])
    log.line("info", "access", "m", [("src.workload", 'x" error="y\nforged', True)])
    log.flush()
    assert read(pipe[0]).endswith('src.workload="x\\" error=\\"y\\nforged"\n')


def test_lines_of_a_turn_are_written_together(pipe) -> None:
    """One system call per turn."""
    loop = Loop()
    log = LogWriter(loop, pipe[1])
    for number in range(3):
        log.line("info", "t", f"m{number}")
    assert len(loop.at_turn_end) == 1
    assert read(pipe[0]) == ""
    loop.call_later(0, loop.stop)
    loop.run()
    assert read(pipe[0]).count("\n") == 3


def test_full_pipe_neither_blocks_nor_grows_for_ever(pipe) -> None:
    """A stuck journal must not stop traffic; what is lost is counted."""
    log = LogWriter(Loop(), pipe[1])
    for _ in range(60):
        log.line("info", "t", "x" * 50_000)
        log.flush()
    written = ""
    while data := read(pipe[0]):
        written += data
        log.flush()
    log.line("info", "t", "after")
    log.flush()
    lines = (written + read(pipe[0])).splitlines()
    assert lines[-1].endswith("after\t")
    assert {len(line) for line in lines[:-1]} == {len(lines[0])}, "a line was cut in two"
    assert log.dropped == 61 - len(lines)


def test_journal_socket_is_written_without_waiting() -> None:
    reader, writer = socket.socketpair()
    log = LogWriter(Loop(), writer.fileno())
    for _ in range(60):
        log.line("info", "t", "x" * 50_000)
        log.flush()
    assert log.dropped > 0
    assert writer.getblocking()  # a flag others would see has not been touched
    reader.close()
    log.line("info", "t", "nobody listens")
    log.flush()
    writer.close()
