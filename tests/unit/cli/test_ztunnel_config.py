"""``metalmesh ztunnel-config`` on saved dumps; with a running ztunnel in tests/wire/ztunnel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from metalmesh.cli.main import main
from tests.unit.render.test_ztunnel_config import CONNECTIONS, DUMP, RAW, WORKLOADS


@pytest.fixture
def dump(tmp_path: Path) -> str:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(DUMP))
    return str(path)


@pytest.mark.parametrize(
    "words", [("ztunnel-config", "workload"), ("zc", "w"), ("zc", "workloads")]
)
def test_kinds_and_the_verb_have_istioctls_short_names(
    dump: str, capsys: pytest.CaptureFixture[str], words: tuple[str, str]
) -> None:
    assert main([*words, "--file", dump]) == 0
    assert capsys.readouterr().out == WORKLOADS


def test_options_reach_the_table(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zc", "connections", "-f", dump]) == 0
    assert capsys.readouterr().out == CONNECTIONS
    assert main(["zc", "connections", "-f", dump, "--raw"]) == 0
    assert capsys.readouterr().out == RAW


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_data_is_the_dumps_own(
    dump: str, capsys: pytest.CaptureFixture[str], form: str, load
) -> None:
    assert main(["zc", "svc", "-f", dump, "-o", form, "-n", "shop"]) == 0
    assert load(capsys.readouterr().out) == DUMP["services"]
    assert main(["zc", "all", "-f", dump, "-o", form]) == 0
    assert load(capsys.readouterr().out) == DUMP


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[]", "no config_dump"), ("{}", "no config_dump")],
)
def test_what_is_no_dump_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main(["zc", "all", "-f", str(path)]) == 1
    assert f"metalmesh ztunnel-config: {path}: {words}" in capsys.readouterr().err
