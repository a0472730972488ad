"""A ztunnel's ``config_dump`` as ``istioctl ztunnel-config`` shows it; pure.

Everything works on the dump's own JSON (istio-facts 8.3), ours or that of the Rust ztunnel.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from metalmesh.render.table import render_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Dump = dict[str, Any]
Row = tuple[str, ...]

NONE: Final = "None"
#: kind -> (title in ``all``, key of the dump, columns, blanks between them)
KINDS: Final[dict[str, tuple[str, str, Row, int]]] = {
    "workload": (
        "WORKLOAD INFO", "workloads",
        ("NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"), 1,
    ),
    "service": (
        "SERVICE INFO", "services",
        ("NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"), 1,
    ),
    "policy": (
        "POLICY INFO", "policies", ("NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"), 1,
    ),
    "certificate": (
        "SECRET INFO", "certificates",
        ("CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER",
         "NOT BEFORE"), 5,
    ),
    "connections": (
        "CONNECTIONS INFO", "workloadState",
        ("WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"), 1,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """What to show; an empty text leaves a question open."""

    namespace: str = ""
    node: str = ""
    address: str = ""
    direction: str = ""
    #: addresses instead of names in the table of connections
    raw: bool = False


def select(kind: str, dump: Dump, filters: Filters) -> Any:
    """The part of a dump that is asked for, in its own shape."""
    found = dump.get(KINDS[kind][1])
    if kind == "connections":
        return _select_connections(found or {}, filters)
    return [item for item in found or [] if _wanted(kind, item, filters)]


def _wanted(kind: str, item: Mapping[str, Any], filters: Filters) -> bool:
    namespace = filters.namespace
    if kind == "certificate":
        return not namespace or f"/ns/{namespace}/" in item["identity"]
    if namespace and item.get("namespace") != namespace:
        return False
    if kind != "workload":
        return True
    if filters.node and item.get("node") != filters.node:
        return False
    addresses = (*item.get("workloadIps", ()), item.get("hostname", ""))
    return not filters.address or filters.address in addresses


def _select_connections(found: Mapping[str, Any], filters: Filters) -> dict[str, Any]:
    directions = [filters.direction] if filters.direction else ["inbound", "outbound"]
    selected = {}
    for uid, state in found.items():
        namespace = state.get("info", {}).get("namespace", "")
        if filters.namespace and namespace != filters.namespace:
            continue
        connections = state.get("connections", {})
        kept = {direction: connections.get(direction, []) for direction in directions}
        selected[uid] = {**state, "connections": kept}
    return selected


def render(kind: str, dump: Dump, filters: Filters, now: datetime) -> str:
    """The table of one kind."""
    _, _, columns, gap = KINDS[kind]
    found = select(kind, dump, filters)
    names = _Names(dump)
    rows: Iterable[Row]
    match kind:
        case "workload":
            rows = sorted(_workload_row(item, names) for item in found)
        case "service":
            rows = sorted(_service_row(item, names) for item in found)
        case "policy":
            rows = sorted(
                (p.get("namespace", ""), p["name"], p["action"], p["scope"]) for p in found
            )
        case "certificate":
            rows = [row for item in found for row in _certificate_rows(item, now)]
        case _:
            rows = [
                row
                for state in found.values()
                for row in _connection_rows(state, names, raw=filters.raw)
            ]
    return render_table(columns, rows, gap=gap)


def render_all(dump: Dump, filters: Filters, now: datetime, *, titles: bool) -> str:
    """Every table, one after the other."""
    blocks = [
        (f"{title}\n" if titles else "") + render(kind, dump, filters, now)
        for kind, (title, *_) in KINDS.items()
    ]
    return "\n".join(blocks)


# --- rows --------------------------------------------------------------------------------------


def _workload_row(workload: Mapping[str, Any], names: _Names) -> Row:
    addresses = ",".join(workload.get("workloadIps", ())) or workload.get("hostname", "")
    return (
        workload.get("namespace", ""),
        workload.get("name", ""),
        addresses,
        workload.get("node", ""),
        names.waypoint(workload),
        workload.get("protocol", "TCP"),
    )


def _service_row(service: Mapping[str, Any], names: _Names) -> Row:
    endpoints = service.get("endpoints", {}).values()
    healthy = sum(endpoint.get("status") == "Healthy" for endpoint in endpoints)
    vips = ",".join(vip.rpartition("/")[2] for vip in service.get("vips", ()))
    return (
        service.get("namespace", ""),
        service.get("name", ""),
        vips or NONE,
        names.waypoint(service),
        f"{healthy}/{len(endpoints)}",
    )


def _certificate_rows(entry: Mapping[str, Any], now: datetime) -> Iterable[Row]:
    name = str(entry["identity"])
    # after the colon comes the reason, which the JSON has in full
    status = str(entry.get("state", "")).partition(":")[0]
    kinds = ("Leaf", *("Intermediate" for _ in entry.get("certChain", [])[1:]))
    found = [*zip(kinds, entry.get("certChain", []), strict=False)]
    found += [("Root", certificate) for certificate in entry.get("rootCerts", [])]
    if not found:
        yield name, "NA", status, "NA", "NA", "NA", "NA"
    for kind, certificate in found:
        after, before = certificate["expirationTime"], certificate["validFrom"]
        valid = datetime.fromisoformat(before) <= now < datetime.fromisoformat(after)
        serial = f"{int(certificate['serialNumber']):x}"
        yield name, kind, status, str(valid).lower(), serial, after, before


def _connection_rows(state: Mapping[str, Any], names: _Names, *, raw: bool) -> Iterable[Row]:
    info = state.get("info", {})
    workload = f"{info.get('name', '')}.{info.get('namespace', '')}"
    show = str if raw else names.endpoint
    for direction, found in sorted(state.get("connections", {}).items()):
        for item in sorted(found, key=lambda item: str(item.get("src"))):
            local, remote = item.get("src", ""), item.get("actualDst", "")
            if direction == "inbound":
                local, remote = remote, local
            target = item.get("originalDst") or ""
            yield (
                workload,
                direction.capitalize(),
                show(local),
                show(remote),
                show(target) if target else "",
                item.get("protocol", ""),
            )


class _Names:
    """Names of addresses, as the dump knows them."""

    def __init__(self, dump: Dump) -> None:
        services: Sequence[Mapping[str, Any]] = dump.get("services") or []
        workloads: Sequence[Mapping[str, Any]] = dump.get("workloads") or []
        #: what a destination may say -> name of the Service
        self._services = {
            key: str(item["name"])
            for item in services
            for key in (*item.get("vips", ()), f"{item['namespace']}/{item['hostname']}")
        }
        self._hosts = {
            address: f"{item.get('name', '')}.{item.get('namespace', '')}"
            for item in workloads
            for address in item.get("workloadIps", ())
        }
        for item in services:
            for vip in item.get("vips", ()):
                self._hosts[vip.rpartition("/")[2]] = str(item["hostname"])

    def waypoint(self, item: Mapping[str, Any]) -> str:
        """Name of the Service of the waypoint that an object uses, or ``None``."""
        destination = str((item.get("waypoint") or {}).get("destination", ""))
        if not destination:
            return NONE
        host = destination.rpartition("/")[2]
        known = self._services.get(destination) or self._hosts.get(host, "").partition(".")[0]
        if known:
            return known
        return host if ":" in host or host.replace(".", "").isdigit() else host.partition(".")[0]

    def endpoint(self, text: str) -> str:
        """``name.namespace:port`` or ``hostname:port`` for ``ip:port`` where the dump knows it."""
        host, colon, port = text.rpartition(":")
        name = self._hosts.get(host.strip("[]"))
        return f"{name}{colon}{port}" if name else text
