"""How a workload says that it is well: the ``probe`` of Istio's WorkloadGroup, as an annotation.

A WorkloadEntry has no field for it, so the same YAML stands in ``ambient.metalmesh.io/probe``.
Field names, defaults and meaning are those of a Kubernetes readinessProbe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import yaml

from metalmesh.constants import ANNOTATION_PROBE
from metalmesh.model.resources.reader import Faults, Reader

if TYPE_CHECKING:
    from metalmesh.errors import ResourceError

_DAY_SECONDS: Final = 24 * 3600
_MAX_THRESHOLD: Final = 1000
_SCHEMES: Final = ("HTTP", "HTTPS")
_LIMIT_BYTES: Final = 64 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpGet:
    """Well if the answer's status is 200 to 399."""

    port: int
    path: str = "/"
    #: "" is the workload's address
    host: str = ""
    scheme: str = "HTTP"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """Well if the port can be connected to."""

    port: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class Exec:
    """Well if the command, inside the workload's namespace, exits with 0."""

    command: tuple[str, ...]


Action = HttpGet | TcpSocket | Exec


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What to do, how often, and how many results in a row count."""

    action: Action
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = field(default=3)


def parse_probe(text: str, source: str, obj: str) -> Probe | list[ResourceError]:
    """Read the annotation's YAML; errors name fields below the annotation."""
    where = f"metadata.annotations[{ANNOTATION_PROBE}]"
    faults = Faults(source, obj)
    try:
        if len(text) > _LIMIT_BYTES:
            raise ValueError("is too long")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        faults.add(where, f"is not valid YAML: {str(error).splitlines()[0]}")
        return faults.errors
    if not isinstance(data, dict):
        faults.add(where, "must be a mapping such as {httpGet: {port: 8080}}")
        return faults.errors
    with Reader(data, where, faults) as reader:
        probe = _read(reader)
    return faults.errors or probe


def _read(reader: Reader) -> Probe:
    actions: list[Action] = []
    if reader.has("httpGet"):
        with reader.child("httpGet") as http:
            actions.append(_http(http))
    if reader.has("tcpSocket"):
        with reader.child("tcpSocket") as tcp:
            actions.append(TcpSocket(_port(tcp), tcp.string("host")))
    if reader.has("exec"):
        with reader.child("exec") as command:
            actions.append(Exec(command.strings("command")))
            if not command.strings("command"):
                command.fail("command", "must name a program")
    if len(actions) != 1:
        reader.fail("", "needs exactly one of httpGet, tcpSocket and exec")
    return Probe(
        action=actions[0] if actions else TcpSocket(0),
        initial_delay_seconds=reader.integer("initialDelaySeconds", 0, _DAY_SECONDS),
        timeout_seconds=reader.integer("timeoutSeconds", 1, _DAY_SECONDS, 1),
        period_seconds=reader.integer("periodSeconds", 1, _DAY_SECONDS, 10),
        success_threshold=reader.integer("successThreshold", 1, _MAX_THRESHOLD, 1),
        failure_threshold=reader.integer("failureThreshold", 1, _MAX_THRESHOLD, 3),
    )


def _http(reader: Reader) -> HttpGet:
    headers = []
    for header in reader.children("httpHeaders"):
        with header:
            pair = header.required("name"), header.string("value")
            if any(ord(letter) < 32 for text in pair for letter in text) or ":" in pair[0]:
                header.fail("", "must not hold control characters or a colon in its name")
            headers.append(pair)
    path = reader.string("path", "/") or "/"
    if not path.startswith("/") or any(ord(letter) <= 32 for letter in path):
        reader.fail("path", "must start with / and hold no blanks")
    return HttpGet(
        port=_port(reader),
        path=path,
        host=reader.string("host"),
        scheme=reader.choice("scheme", _SCHEMES, "HTTP"),
        headers=tuple(headers),
    )


def _port(reader: Reader) -> int:
    if not reader.has("port"):
        reader.fail("port", "is required")
    return reader.port("port")
