"""What a probe saw, compared with what was foretold; pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from metalmesh.policy.answer import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

#: outcomes of connections that reach an application
REACHES: Final = frozenset(
    {Outcome.ALLOWED.value, Outcome.PLAINTEXT.value, Outcome.PASSED_THROUGH.value}
)
_FIELD: Final = re.compile(r'(?:^|\s)([a-z_.]+)=(?:"((?:[^"\\]|\\.)*)"|(\S+))')


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """A real connection."""

    source: str
    #: how it ended at the client's socket
    result: str
    received: str
    #: lines of the access logs of both ends; "" where there is none
    source_line: str
    destination_line: str

    @property
    def error(self) -> str:
        """Why it did not reach the application; "" when it did."""
        for line in (self.destination_line, self.source_line):
            error = log_fields(line).get("error", "")
            if error:
                return error
        return self.result if self.result.startswith(("not connected", "reset")) else ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "source": self.source,
            "result": self.result,
            "received": self.received,
            "sourceLog": self.source_line or None,
            "destinationLog": self.destination_line or None,
            "error": self.error or None,
        }


def log_fields(line: str) -> dict[str, str]:
    """The fields of a line of the access log, plain or JSON."""
    if line.startswith("{"):
        try:
            return {key: str(value) for key, value in json.loads(line).items()}
        except ValueError:
            return {}
    return {key: quoted or bare for key, quoted, bare in _FIELD.findall(line)}


def chosen_path(answer: Mapping[str, Any], source_line: str) -> Mapping[str, Any] | None:
    """The foretold way that the connection took; the only one, or by the source's own log."""
    paths: list[Mapping[str, Any]] = answer["paths"]
    if len(paths) == 1:
        return paths[0]
    fields = log_fields(source_line)
    target = fields.get("dst.hbone_addr") or fields.get("dst.addr", "")
    return next((path for path in paths if target and path["target"] == target), None)


def agrees(answer: Mapping[str, Any], seen: Observation) -> bool:
    """Whether it happened as foretold: that it reached an application, or that it did not."""
    path = chosen_path(answer, seen.source_line)
    return ((path or answer)["outcome"] in REACHES) is not bool(seen.error)


def render_observation(answer: Mapping[str, Any], seen: Observation) -> str:
    """The comparison for people."""
    path = chosen_path(answer, seen.source_line) or answer
    verdict = "as foretold" if agrees(answer, seen) else "NOT AS FORETOLD"
    really = f"failed: {seen.error}" if seen.error else "reached the application"
    lines = [
        "  probe",
        f"    from       {seen.source or answer['source']}",
        f"    foretold   {path['outcome']}",
        f"    really     {really} ({verdict})",
        f"    client     {seen.result}",
    ]
    if seen.received:
        lines.append(f"    received   {seen.received!r}")
    lines.append(f"    its log    {seen.source_line or 'no line'}")
    lines.append(f"    other end  {seen.destination_line or 'no line'}")
    return "\n".join(lines) + "\n"
