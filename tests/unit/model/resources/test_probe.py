"""The probe of a workload: what is read, and what each fault is called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import ResourceError
from metalmesh.model.resources.probe import Exec, HttpGet, Probe, TcpSocket, parse_probe

WHERE = "metadata.annotations[ambient.metalmesh.io/probe]"


def read(text: str) -> Probe | list[ResourceError]:
    return parse_probe(text, "w.yaml", "WorkloadEntry demo/w")


def test_defaults_are_those_of_kubernetes() -> None:
    assert read("tcpSocket: {port: 80}") == Probe(
        action=TcpSocket(80),
        initial_delay_seconds=0,
        timeout_seconds=1,
        period_seconds=10,
        success_threshold=1,
        failure_threshold=3,
    )


def test_everything_that_can_be_said_is_read() -> None:
    found = read(
        "{initialDelaySeconds: 5, timeoutSeconds: 2, periodSeconds: 3, successThreshold: 4,"
        " failureThreshold: 6, httpGet: {path: '/ok?x=1', port: 8080, host: example.org,"
        " scheme: HTTPS, httpHeaders: [{name: X-A, value: b}]}}"
    )
    assert found == Probe(
        action=HttpGet(
            port=8080,
            path="/ok?x=1",
            host="example.org",
            scheme="HTTPS",
            headers=(("X-A", "b"),),
        ),
        initial_delay_seconds=5,
        timeout_seconds=2,
        period_seconds=3,
        success_threshold=4,
        failure_threshold=6,
    )
    assert read("exec: {command: [cat, /ready]}") == Probe(action=Exec(("cat", "/ready")))


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("{", "", "is not valid YAML"),
        ("- x", "", "must be a mapping"),
        ("periodSeconds: 5", "", "exactly one of httpGet, tcpSocket and exec"),
        ("{tcpSocket: {port: 1}, exec: {command: [a]}}", "", "exactly one of"),
        ("tcpSocket: {}", ".tcpSocket.port", "is required"),
        ("tcpSocket: {port: http}", ".tcpSocket.port", "must be an integer"),
        ("{tcpSocket: {port: 1}, periodSeconds: 0}", ".periodSeconds", "must be 1 to"),
        ("{tcpSocket: {port: 1}, period: 5}", ".period", "did you mean periodSeconds?"),
        ("httpGet: {port: 1, path: ok}", ".httpGet.path", "must start with /"),
        ("httpGet: {port: 1, scheme: FTP}", ".httpGet.scheme", "must be one of"),
        (
            'httpGet: {port: 1, httpHeaders: [{name: "a\\nb", value: c}]}',
            ".httpGet.httpHeaders[0]",
            "control characters",
        ),
        ("exec: {command: []}", ".exec.command", "must name a program"),
    ],
)
def test_faults_name_the_field(text: str, field: str, message: str) -> None:
    found = read(text)
    assert isinstance(found, list)
    assert any(item.field == WHERE + field and message in item.message for item in found), found
    assert all(item.obj == "WorkloadEntry demo/w" for item in found)


@given(st.text(max_size=60))
def test_any_text_is_a_probe_or_a_list_of_faults(text: str) -> None:
    found = read(text)
    assert isinstance(found, Probe) or found
