"""The store is followed on a real file system, with inotify and without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metalmesh.controlplane.watcher import POLL_SECONDS, StoreWatcher


def _delay(
    store: Path, change: Callable[[], object], directories: tuple[str, ...] = ("",)
) -> float:
    """Seconds from a change to the end of the wait for it."""

    async def measure() -> float:
        watcher = StoreWatcher(store)
        watcher.watch(("",))
        waiting = asyncio.ensure_future(watcher.wait())
        await asyncio.sleep(0)
        started = time.monotonic()
        change()
        await asyncio.wait_for(waiting, 10)
        watcher.close()
        return time.monotonic() - started

    return asyncio.run(measure())


def _rename(store: Path) -> None:
    (store / ".new").write_text("x")
    (store / ".new").rename(store / "a.yaml")


CHANGES = {
    "written": lambda store: (store / "a.yaml").write_text("x"),
    "renamed into place": _rename,
    "removed": lambda store: (store / "old.yaml").unlink(),
    "new directory": lambda store: (store / "Service").mkdir(),
    "mode changed": lambda store: (store / "old.yaml").chmod(0o600),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_is_noticed_at_once(tmp_path: Path, change: Callable[[Path], object]) -> None:
    (tmp_path / "old.yaml").write_text("x")
    assert _delay(tmp_path, lambda: change(tmp_path)) < 0.5


def test_without_inotify_the_store_is_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoreWatcher, "_open", lambda _: -1)
    delay = _delay(tmp_path, lambda: (tmp_path / "a.yaml").write_text("x"))
    assert POLL_SECONDS * 0.9 <= delay < POLL_SECONDS + 0.5


def test_store_that_is_not_there_is_polled_for(tmp_path: Path) -> None:
    assert _delay(tmp_path / "gone", lambda: None) < POLL_SECONDS + 0.5


def test_directory_made_anew_is_watched_anew(tmp_path: Path) -> None:
    """Its name is known, but the watch was of the directory that is gone."""

    async def check() -> None:
        below = tmp_path / "d"
        below.mkdir()
        watcher = StoreWatcher(tmp_path)
        assert watcher.watch(("", "d"))
        assert not watcher.watch(("", "d"))
        below.rmdir()
        below.mkdir()
        await watcher.wait()
        assert watcher.watch(("", "d"))
        waiting = asyncio.ensure_future(watcher.wait())
        await asyncio.sleep(0)
        (below / "a.yaml").write_text("x")
        await asyncio.wait_for(waiting, 1)
        watcher.close()

    asyncio.run(check())
