"""Log lines in ztunnel's shape (istio-facts 8.2)."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from metalmesh.errors import ConfigError
from metalmesh.service import logs
from metalmesh.service.logs import Bare, Log, render_json, render_plain

WHEN = 1_787_220_671.131415
FIELDS = {
    "src.addr": Bare("10.1.0.7:51344"),
    "src.workload": 'we"b',
    "bytes_sent": 84,
    "ok": True,
    "ratio": 0.5,
}


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs.reset_levels(logging.getLevelName(level).lower().replace("warning", "warn"))


def test_plain_line_quotes_texts_only() -> None:
    assert render_plain(WHEN, "info", "access", "connection complete", FIELDS) == (
        "2026-08-20T10:11:11.131415Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.1.0.7:51344 src.workload="we\\"b" bytes_sent=84 ok=true ratio=0.5'
    )


def test_plain_line_without_fields_has_no_empty_column() -> None:
    assert (
        render_plain(0, "warn", "zds", "lost", {}) == "1970-01-01T00:00:00.000000Z\twarn\tzds\tlost"
    )


def test_json_line_is_one_object() -> None:
    line = json.loads(render_json(WHEN, "error", "access", "failed", FIELDS))
    assert line == {
        "level": "error",
        "time": "2026-08-20T10:11:11.131415Z",
        "scope": "access",
        "message": "failed",
        **FIELDS,
    }


def test_lines_cannot_be_forged() -> None:
    """A newline in a peer's text must not start another line."""
    assert "\n" not in render_plain(0, "info", "x", "m", {"peer": "a\n2026 info"})


def test_configured_log_reaches_the_stream() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    log = Log("metalmesh.ztunnel.zds")
    log.debug("hidden")
    log.info("50% done", {"uid": "u"})
    log.exception("broken", ValueError("why"))
    logging.getLogger("grpc").warning("%s happened", "it")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["scope"], line["level"], line["message"]) for line in lines] == [
        ("ztunnel.zds", "info", "50% done"),
        ("ztunnel.zds", "error", "broken"),
        ("grpc", "warn", "it happened"),
    ]
    assert lines[0]["uid"] == "u"
    assert "ValueError: why" in lines[1]["traceback"]


def test_levels_are_changed_by_scope_and_reset() -> None:
    logs.configure("info", "plain", io.StringIO())
    logs.apply_levels("warn,metalmesh.zds:debug,metalmesh::xds=error")
    assert logs.current_levels() == "warn,metalmesh.xds:error,metalmesh.zds:debug"
    logs.reset_levels("info")
    assert logs.current_levels() == "info"


@pytest.mark.parametrize("text", ["loud", "", "a:b:", "debug,loud"])
def test_wrong_levels_change_nothing(text: str) -> None:
    logs.configure("info", "plain", io.StringIO())
    with pytest.raises(ConfigError):
        logs.apply_levels(text)
    assert logs.current_levels() == "info"


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="plain, json"):
        logs.configure("info", "xml")
