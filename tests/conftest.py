"""Evidence of failures and recordings, for every level of tests."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.artifacts import Evidence
from tests.support.capture import Capture, Link, Recorder, capture

EVIDENCE = pytest.StashKey[Evidence]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need root fail without it with one clear line; they are never skipped."""
    needs = item.get_closest_marker("root") or item.get_closest_marker("lab")
    if needs and os.geteuid() != 0:
        pytest.fail("needs root and network namespaces: run it with sudo", pytrace=False)


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Evidence:
    """Where a test or fixture registers what helps to explain a failure."""
    return request.node.stash.setdefault(EVIDENCE, Evidence(request.node.nodeid))


@pytest.fixture
def record(tmp_path: Path, evidence: Evidence) -> Recorder:
    """``with record(link, "tcp") as recording``: a capture that is kept when the test fails."""

    def start(link: Link, expression: str = "") -> AbstractContextManager[Capture]:
        directory = tmp_path / "captures"
        if not directory.exists():
            directory.mkdir()
            evidence.files.append(directory)
        return capture(link, expression, directory=directory)

    return start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """When a test fails, keep its evidence and print the one path."""
    report = yield
    found = item.stash.get(EVIDENCE, None)
    if report.failed and found is not None and call.when != "teardown":
        directory = found.collect(str(report.longrepr))
        report.sections.append(("evidence", str(directory)))
    return report
