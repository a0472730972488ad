"""Log lines in ztunnel's shape (istio-facts 8.2), plain or JSON, over the standard ``logging``.

Plain: ``timestamp TAB level TAB scope TAB message TAB key=value key="text"``. Strings are quoted,
numbers and :class:`Bare` values are not. JSON: one object with level, time, scope, message and the
fields. ``render_plain`` and ``render_json`` are what the data workers use for their own lines.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from metalmesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TRACE: Final = 5
#: level names as they are configured and printed
LEVELS: Final[dict[str, int]] = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
    "off": logging.CRITICAL + 10,
}
_NAMES: Final = {number: name for name, number in LEVELS.items()}
FORMATS: Final = ("plain", "json")
_PACKAGE: Final = "metalmesh."

Fields = dict[str, Any]


class Bare(str):
    """A text that plain lines carry without quotes: an address, a duration."""

    __slots__ = ()


class Log:
    """A named source of log lines; fields are given as a mapping because keys have dots."""

    __slots__ = ("logger",)

    def __init__(self, scope: str) -> None:
        self.logger = logging.getLogger(scope)

    def error(self, message: str, fields: Mapping[str, Any] | None = None) -> None:
        """Something failed."""
        self._log(logging.ERROR, message, fields)

    def warning(self, message: str, fields: Mapping[str, Any] | None = None) -> None:
        """Something is not as it should be, and the service goes on."""
        self._log(logging.WARNING, message, fields)

    def info(self, message: str, fields: Mapping[str, Any] | None = None) -> None:
        """Something worth knowing happened."""
        self._log(logging.INFO, message, fields)

    def debug(self, message: str, fields: Mapping[str, Any] | None = None) -> None:
        """A detail for whoever debugs."""
        self._log(logging.DEBUG, message, fields)

    def exception(self, message: str, error: BaseException) -> None:
        """An unexpected exception, with its traceback."""
        self.logger.error(message, exc_info=error, stacklevel=2)

    def _log(self, level: int, message: str, fields: Mapping[str, Any] | None) -> None:
        if self.logger.isEnabledFor(level):
            self.logger.log(level, message, extra={"fields": fields or {}}, stacklevel=3)


class _Formatter(logging.Formatter):
    """Turns records of any library into our lines."""

    def __init__(self, render: Callable[[float, str, str, str, Mapping[str, Any]], str]) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        fields: Fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        # our own messages are complete texts; only libraries use %-arguments
        message = record.getMessage() if record.args else str(record.msg)
        scope = record.name.removeprefix(_PACKAGE)
        level = _NAMES.get(record.levelno, record.levelname.lower())
        return self._render(record.created, level, scope, message, fields)


def configure(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send every log line of this process to ``stream`` (default: stderr)."""
    if log_format not in FORMATS:
        raise ConfigError(f"log_format {log_format!r} is not one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(render_plain if log_format == "plain" else render_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(parse_level(level))


def parse_level(text: str) -> int:
    """The number of a level name."""
    if text.lower() not in LEVELS:
        raise ConfigError(f"log level {text!r} is not one of {', '.join(LEVELS)}")
    return LEVELS[text.lower()]


def apply_levels(text: str) -> None:
    """Set levels from ``LEVEL`` or a list ``scope:LEVEL,scope=LEVEL`` (admin ``/logging``).

    Nothing changes when any part is wrong.
    """
    parsed: list[tuple[str, int]] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        scope, _, level = part.replace("=", ":").rpartition(":")
        parsed.append((scope.replace("::", "."), parse_level(level)))
    if not parsed:
        raise ConfigError("log level is empty; give LEVEL or scope:LEVEL,...")
    for scope, number in parsed:
        logging.getLogger(scope or None).setLevel(number)


def reset_levels(level: str) -> None:
    """One level for everything, as after :func:`configure`."""
    number = parse_level(level)
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)
    logging.getLogger().setLevel(number)


def current_levels() -> str:
    """The levels in force, in the spelling :func:`apply_levels` reads."""
    manager = logging.Logger.manager
    scoped = {
        name: logger.level
        for name, logger in manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.level
    }
    parts = [f"{name}:{_NAMES.get(number, number)}" for name, number in sorted(scoped.items())]
    root = logging.getLogger().level
    return ",".join([str(_NAMES.get(root, root)), *parts])


def timestamp(when: float) -> str:
    """RFC 3339 in UTC with microseconds; ``when`` is unix seconds."""
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def render_plain(
    when: float, level: str, scope: str, message: str, fields: Mapping[str, Any]
) -> str:
    """One plain line, without its newline."""
    head = f"{timestamp(when)}\t{level}\t{scope}\t{message}"
    if not fields:
        return head
    return head + "\t" + " ".join(f"{key}={_plain(value)}" for key, value in fields.items())


def render_json(
    when: float, level: str, scope: str, message: str, fields: Mapping[str, Any]
) -> str:
    """One JSON line, without its newline."""
    line = {"level": level, "time": timestamp(when), "scope": scope, "message": message, **fields}
    return json.dumps(line, default=str)


def _plain(value: Any) -> str:
    if isinstance(value, Bare):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
