"""Clients of the control plane as ``istioctl proxy-status`` lists them; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from metalmesh.constants import (
    TYPE_ADDRESS,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
    TYPE_NODE,
)
from metalmesh.render.table import render_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: short names, Istio's where it has one
_SHORT: Final = {
    TYPE_ADDRESS: "WDS",
    TYPE_AUTHORIZATION: "WADS",
    TYPE_NODE: "NODE",
    TYPE_NETWORK_POLICY: "NP",
}
_COLUMNS: Final = ("NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES", "STATE")


def render_proxy_status(streams: Sequence[Mapping[str, Any]], server: str) -> str:
    """The table, from ``/debug/syncz``; ``server`` is the control plane's own name."""
    rows = sorted(
        (
            stream["client"].split("~")[2] if stream["client"].count("~") > 2 else stream["client"],
            stream["cluster"],
            server,
            stream["version"],
            _types(stream["types"]),
            _state(stream["types"]),
        )
        for stream in streams
    )
    return render_table(_COLUMNS, rows, gap=5)


def _types(types: Mapping[str, Any]) -> str:
    names = sorted({_SHORT.get(url, url.rpartition(".")[2]) for url in types})
    return f"{len(types)} ({','.join(names)})"


def _state(types: Mapping[str, Any]) -> str:
    """The worst state of any type: a refusal, something not answered, or all in step."""
    refused = [_SHORT.get(url, url) for url, known in sorted(types.items()) if known["last_error"]]
    if refused:
        return f"ERROR ({','.join(refused)})"
    return "SYNCED" if all(known["synced"] for known in types.values()) else "STALE"
