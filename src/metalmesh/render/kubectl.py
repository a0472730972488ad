"""Objects as kubectl lists and describes them; pure, on the objects' own YAML."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import MetalmeshError
from metalmesh.model.resources import KINDS
from metalmesh.render.table import render_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Data = "Mapping[str, Any]"

_SHORT: Final = {
    "Namespace": ("ns",), "Node": ("no",), "ServiceAccount": ("sa",), "Service": ("svc",),
    "WorkloadEntry": ("we",), "ServiceEntry": ("se",), "PeerAuthentication": ("pa",),
    "AuthorizationPolicy": ("ap",), "NetworkPolicy": ("netpol",),
}  # fmt: skip
_NONE: Final = "<none>"


def find_kind(text: str) -> str:
    """The kind that is meant by ``authorizationpolicies``, ``ap``, ``Service``, ..."""
    wanted = text.lower().partition(".")[0]
    for kind in KINDS:
        lower = kind.lower()
        plurals = {f"{lower}s", f"{lower}es", f"{lower[:-1]}ies"}
        if wanted in {lower, *plurals, *_SHORT.get(kind, ())}:
            return kind
    raise MetalmeshError(f"no kind {text!r}; known are {', '.join(sorted(KINDS))}")


def render_list(
    kind: str,
    objects: Sequence[Mapping[str, Any]],
    status: Mapping[str, Mapping[str, Any]],
    now: datetime,
    *,
    namespaces: bool,
    wide: bool,
) -> str:
    """The table of ``get``; ``status`` is object id to its entry of ``/debug/resources``."""
    columns = [*_COLUMNS.get(kind, ()), *(_WIDE.get(kind, ()) if wide else ())]
    header = [*(["NAMESPACE"] if namespaces else []), "NAME", *(name for name, _ in columns)]
    header += ["AGE", *(["STATUS"] if wide else [])]
    rows = []
    for item in objects:
        meta = item["metadata"]
        namespace = meta.get("namespace") or ("default" if KINDS[kind].namespaced else "")
        key = f"{kind} {namespace}/{meta['name']}" if namespace else f"{kind} {meta['name']}"
        entry = status.get(key, {})
        row = [*([namespace] if namespaces else []), str(meta["name"])]
        row += [read(item) or _NONE for _, read in columns]
        row += [_age(meta.get("creationTimestamp") or entry.get("created", ""), now)]
        row += [status_word(entry)] if wide else []
        rows.append(row)
    return render_table(header, rows, gap=3)


def status_word(entry: Mapping[str, Any]) -> str:
    """The status of an object in one or two words."""
    if not entry:
        return "Unknown"
    if not entry["inForce"]:
        return "Refused"
    if entry["outdated"]:
        return "Refused,OlderInForce"
    bad = [item for item in entry["conditions"] if item["status"] != "True"]
    good = [item["reason"] for item in entry["conditions"]]
    return ",".join(item["reason"] for item in bad) or ",".join(good) or "Accepted"


def render_status(entry: Mapping[str, Any]) -> str:
    """What ``describe`` says below the object."""
    lines = [f"Status: {status_word(entry)}"]
    if entry:
        lines.append(f"Source: {entry['source']}")
    if entry.get("conditions"):
        rows = [
            (item["type"], item["status"], item["reason"], item["message"])
            for item in entry["conditions"]
        ]
        table = render_table(("TYPE", "STATUS", "REASON", "MESSAGE"), rows, gap=2)
        lines += ["Conditions:", *(f"  {line}" for line in table.splitlines())]
    if entry.get("errors"):
        lines.append("Errors:")
        lines += [
            "  " + ": ".join(filter(None, (item["source"], item["field"], item["message"])))
            for item in entry["errors"]
        ]
    return "\n".join(lines) + "\n"


def _age(created: str, now: datetime) -> str:
    if not created:
        return "<unknown>"
    seconds = int((now - datetime.fromisoformat(created)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


# --- columns -----------------------------------------------------------------------------------


def _spec(*path: str, default: str = "") -> Callable[[Mapping[str, Any]], str]:
    def read(item: Mapping[str, Any]) -> str:
        value: Any = item.get("spec") or {}
        for key in path:
            value = value.get(key) or {} if isinstance(value, dict) else {}
        if isinstance(value, list):
            return ",".join(map(str, value))
        return str(value) if value != {} else default

    return read


def _labels(*path: str) -> Callable[[Mapping[str, Any]], str]:
    def read(item: Mapping[str, Any]) -> str:
        value: Any = item.get("spec") or {}
        for key in path:
            value = (value or {}).get(key)
        return ",".join(f"{key}={text}" for key, text in sorted((value or {}).items()))

    return read


def _ports(item: Mapping[str, Any]) -> str:
    ports = (item.get("spec") or {}).get("ports") or []
    return ",".join(f"{port['port']}/{port.get('protocol', 'TCP')}" for port in ports)


def _node(item: Mapping[str, Any]) -> str:
    annotations = item["metadata"].get("annotations") or {}
    return str(annotations.get("ambient.metalmesh.io/node", ""))


def _mode(item: Mapping[str, Any]) -> str:
    return str((item["metadata"].get("labels") or {}).get("istio.io/dataplane-mode", ""))


_Columns = dict[str, tuple[tuple[str, "Callable[[Mapping[str, Any]], str]"], ...]]
_COLUMNS: Final[_Columns] = {
    "Namespace": (("DATAPLANE-MODE", _mode),),
    "Service": (("CLUSTER-IP", _spec("clusterIP")), ("PORT(S)", _ports)),
    "WorkloadEntry": (("ADDRESS", _spec("address")),),
    "ServiceEntry": (
        ("HOSTS", _spec("hosts")), ("LOCATION", _spec("location")),
        ("RESOLUTION", _spec("resolution")),
    ),
    "PeerAuthentication": (("MODE", _spec("mtls", "mode")),),
    "AuthorizationPolicy": (("ACTION", _spec("action", default="ALLOW")),),
    "NetworkPolicy": (("POD-SELECTOR", _labels("podSelector", "matchLabels")),),
}  # fmt: skip
_WIDE: Final[_Columns] = {
    "Service": (("SELECTOR", _labels("selector")),),
    "WorkloadEntry": (("NODE", _node), ("SERVICE-ACCOUNT", _spec("serviceAccount"))),
    "PeerAuthentication": (("SELECTOR", _labels("selector", "matchLabels")),),
    "AuthorizationPolicy": (("SELECTOR", _labels("selector", "matchLabels")),),
}
