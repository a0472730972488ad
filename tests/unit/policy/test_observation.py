"""What a probe saw, held against what was foretold; with a real mesh in tests/lab/test_cli.py."""

from __future__ import annotations

from typing import Any

import pytest

from metalmesh.policy.observation import (
    Observation,
    agrees,
    chosen_path,
    log_fields,
    render_observation,
)

COMPLETE = (
    "2026-08-20T10:11:12.131415Z\tinfo\taccess\tconnection complete\tsrc.addr=10.1.0.7:51344 "
    'src.workload="web 1" dst.addr=10.1.0.9:15008 dst.hbone_addr=10.1.0.9:8080 direction="outbound"'
)
REFUSED = (
    "2026-08-20T10:11:12.131415Z\terror\taccess\tconnection complete\tsrc.addr=10.1.0.7:40000 "
    'direction="inbound" error="connection closed due to policy rejection: explicitly denied by: '
    'demo/deny"'
)
CANCELLED = COMPLETE + ' error="http status: 401 Unauthorized"'


def observation(source: str = COMPLETE, destination: str = "", result: str = "ended in good order"):
    return Observation(
        source="10.1.0.7:51344", result=result, received="", source_line=source,
        destination_line=destination,
    )  # fmt: skip


def answer(*paths: tuple[str, str], outcome: str = "") -> dict[str, Any]:
    return {
        "source": "demo/web",
        "outcome": outcome or paths[0][1],
        "paths": [{"target": target, "outcome": found} for target, found in paths],
    }


def test_fields_of_both_forms_of_the_log() -> None:
    found = log_fields(COMPLETE)
    assert found["src.workload"] == "web 1"
    assert found["dst.hbone_addr"] == "10.1.0.9:8080"
    assert log_fields('{"dst.addr": "a:1", "bytes_sent": 5}') == {
        "dst.addr": "a:1",
        "bytes_sent": "5",
    }
    assert log_fields("{broken") == {}


@pytest.mark.parametrize(
    ("seen", "error"),
    [
        (observation(), ""),
        (observation(CANCELLED), "http status: 401 Unauthorized"),
        (observation(CANCELLED, REFUSED),
         "connection closed due to policy rejection: explicitly denied by: demo/deny"),
        (observation("", "", "reset: Connection reset by peer"), "reset: Connection reset by peer"),
        (observation("", "", "not connected: timed out"), "not connected: timed out"),
        (observation("", "", "still open: the application does not mind a silent client"), ""),
    ],
)  # fmt: skip
def test_the_end_that_refused_says_why(seen: Observation, error: str) -> None:
    """The server's reason is the better one; without any log the socket's end counts."""
    assert seen.error == error


@pytest.mark.parametrize(
    ("outcome", "seen", "expected"),
    [
        ("allowed", observation(), True),
        ("plaintext", observation(""), True),
        ("passed through", observation(""), True),
        ("denied", observation(CANCELLED, REFUSED), True),
        ("unreachable", observation(CANCELLED), True),
        ("allowed", observation(CANCELLED, REFUSED), False),
        ("denied", observation(), False),
    ],
)
def test_a_wrong_prophecy_is_admitted(outcome: str, seen: Observation, expected: bool) -> None:
    foretold = answer(("10.1.0.9:8080", outcome))
    assert agrees(foretold, seen) is expected
    assert ("NOT AS FORETOLD" in render_observation(foretold, seen)) is not expected


def test_of_several_endpoints_the_one_that_was_taken_counts() -> None:
    both = answer(("10.1.0.8:8080", "denied"), ("10.1.0.9:8080", "allowed"), outcome="depends")
    assert agrees(both, observation())
    path = chosen_path(both, COMPLETE)
    assert path is not None
    assert path["target"] == "10.1.0.9:8080"
    assert chosen_path(both, "") is None
