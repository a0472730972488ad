"""State files: atomic, private, and never in the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metalmesh.xds.delta_client import DeltaClient, NodeInfo
from metalmesh.zds.messages import AddWorkload
from metalmesh.ztunnel.mesh import SUBSCRIPTIONS
from metalmesh.ztunnel.saved import SavedState, SavedWorkloads

WEB = AddWorkload("uid", "web", "shop", "web")


def client() -> DeltaClient:
    return DeltaClient(NodeInfo("z"), SUBSCRIPTIONS, lambda _update: None)


def test_workloads_come_back_with_their_namespaces(tmp_path: Path) -> None:
    saved = SavedWorkloads(str(tmp_path))
    assert saved.read() == []
    saved.write([(WEB, (4, 42))])
    assert saved.read() == [(WEB, (4, 42))]
    assert (tmp_path / "workloads.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["workloads.json"]


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '[["a"]]', '[["a","b","c","d","x","y"]]'])
def test_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "workloads.json").write_text(text)
    assert SavedWorkloads(str(tmp_path)).read() == []


def test_unwritable_directory_is_one_error_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk must not stop the proxy, nor fill the journal."""

    async def write_thrice() -> None:
        saved = SavedState(str(tmp_path / "none"), client())
        for _ in range(3):
            await saved.close()

    asyncio.run(write_thrice())
    assert [record.message for record in caplog.records] == ["state not saved"]


def test_state_of_xds_is_written_and_restored(tmp_path: Path) -> None:
    asyncio.run(SavedState(str(tmp_path), client()).close())
    SavedState(str(tmp_path), client()).restore()
    assert (tmp_path / "xds.pb").exists()
