"""A pair of captured workloads: shared by tests that only send traffic, or fresh."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.data_worker import Pair, captured_pair

APP_PORT = 8080


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here makes namespaces."""
    for item in items:
        if "wire/datapath" in item.nodeid:
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[Pair]:
    """One pair for all tests of a module: what one test does must not hurt the next."""
    with captured_pair(log_level="debug") as pair:
        pair.route(APP_PORT)
        yield pair


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A pair of its own for a test that changes policies, certificates or lifetimes."""
    with captured_pair(log_level="debug") as pair:
        pair.route(APP_PORT)
        yield pair
