"""``metalmesh ztunnel-config`` beside a running ztunnel."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.apps import echo_app
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage

pytestmark = pytest.mark.root
PORT = 8080


def ask_ztunnel(stage: Stage, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command where the ztunnel's admin port is."""
    command = [sys.executable, "-m", "metalmesh.cli.main", "ztunnel-config", *words]
    return stage.node.do(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    )


def table(stage: Stage, *words: str) -> list[list[str]]:
    """The words of every line below the header."""
    return [line.split() for line in ask_ztunnel(stage, *words).stdout.splitlines()[1:]]


def test_tables_show_the_running_ztunnel(stage: Stage, pair: tuple[Guest, Guest]) -> None:
    one, two = pair
    assert table(stage, "workload", "--node", "node1") == [
        ["shop", "w1", one.netns.address, "node1", "None", "HBONE"],
        ["shop", "w2", two.netns.address, "node1", "None", "HBONE"],
    ]
    wait_until(
        lambda: all(row[2] == "Available" for row in table(stage, "certs")),
        WAITS["workload"],
        what="certificates",
    )
    kinds = [(row[0].rpartition("/")[2], row[1], row[3]) for row in table(stage, "certs")]
    assert ("sa1", "Leaf", "true") in kinds
    assert ("sa2", "Root", "true") in kinds


def test_open_connections_are_shown_from_both_ends(stage: Stage, pair: tuple[Guest, Guest]) -> None:
    """The inbound end shows the application's port, not the tunnel's, as ztunnel does."""
    one, two = pair
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        client = f"w1.shop:{sock.getsockname()[1]}"
        assert table(stage, "connections", "--direction", "outbound") == [
            ["w1.shop", "Outbound", client, "w2.shop:15008", f"w2.shop:{PORT}", "HBONE"]
        ]
        (inbound,) = table(stage, "connections", "--direction", "inbound")
        assert inbound[:3] == ["w2.shop", "Inbound", f"w2.shop:{PORT}"]
        assert inbound[3].startswith("w1.shop:"), "the tunnel's own port follows"
        assert inbound[4:] == ["HBONE"]
    wait_until(lambda: table(stage, "connections") == [], WAITS["traffic"], what="none left")


def test_log_levels_are_shown_and_changed(stage: Stage, pair: tuple[Guest, Guest]) -> None:
    del pair
    assert ask_ztunnel(stage, "log", "--level", "debug").stdout == "current log level is debug\n"
    assert ask_ztunnel(stage, "log", "-r").stdout == "current log level is info\n"
    refused = ask_ztunnel(stage, "log", "--level", "loud")
    assert refused.returncode == 1
    assert "loud" in refused.stderr


def test_no_ztunnel_is_said_with_a_remedy(stage: Stage) -> None:
    """Negative twin: nothing is shown that is not there."""
    done = ask_ztunnel(stage, "all", "-o", "json")
    assert done.returncode == 1
    assert "metalmesh-ztunnel does not answer on port 15000" in done.stderr
    assert done.stdout == ""


def test_data_is_the_dumps_own(stage: Stage, pair: tuple[Guest, Guest]) -> None:
    del pair
    found = json.loads(ask_ztunnel(stage, "workload", "-o", "json").stdout)
    assert found == stage.dump()["workloads"]
