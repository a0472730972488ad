"""Labels by address: asked once, remembered, and not waited for long."""

from __future__ import annotations

import pytest

from metalmesh.ztunnel.worker import sources as sr
from metalmesh.ztunnel.worker.loop import Loop


@pytest.fixture
def sent() -> list:
    return []


def test_address_is_asked_once_and_remembered(sent) -> None:
    sources, got = sr.Sources(Loop(), sent.append), []
    for _ in range(2):
        sources.lookup("10.0.0.1", got.append)
    assert [question.address for question in sent] == ["10.0.0.1"]
    sources.answer(sent[0].request_id, {"name": "a"})
    sources.lookup("10.0.0.1", got.append)
    assert got == [{"name": "a"}] * 3
    assert len(sent) == 1


def test_unknown_address_is_remembered_too(sent) -> None:
    sources, got = sr.Sources(Loop(), sent.append), []
    sources.lookup("192.0.2.1", got.append)
    sources.answer(sent[0].request_id, None)
    sources.lookup("192.0.2.1", got.append)
    assert (got, len(sent)) == ([None, None], 1)


def test_changes_make_it_ask_again(sent) -> None:
    sources, got = sr.Sources(Loop(), sent.append), []
    sources.lookup("10.0.0.1", got.append)
    sources.answer(sent[0].request_id, {"name": "a"})
    sources.forget()
    sources.lookup("10.0.0.1", got.append)
    assert len(sent) == 2
    sources.answer(4711, {"name": "stray"})
    assert len(got) == 1


def test_silent_main_delays_nobody_for_long(sent, monkeypatch) -> None:
    """Labels are for the log: the connection goes on without."""
    monkeypatch.setattr(sr, "_WAIT_SECONDS", 0.01)
    loop, got = Loop(), []
    sources = sr.Sources(loop, sent.append)
    sources.lookup("10.0.0.1", got.append)
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert got == [None]
