"""Clients of the control plane as istioctl lists them."""

from __future__ import annotations

from typing import Any

from metalmesh.constants import TYPE_ADDRESS, TYPE_AUTHORIZATION
from metalmesh.render.proxy_status import render_proxy_status

GOOD = {"synced": True, "last_error": ""}


def stream(client: str, **types: dict[str, Any]) -> dict[str, Any]:
    urls = {"address": TYPE_ADDRESS, "authorization": TYPE_AUTHORIZATION}
    return {
        "client": client, "version": "1.2.3", "cluster": "Kubernetes",
        "types": {urls[name]: known for name, known in types.items()},
    }  # fmt: skip


def test_the_worst_type_gives_the_state() -> None:
    streams = [
        stream("ztunnel~1.1.1.1~ztunnel-b.istio-system~x", address=GOOD, authorization=GOOD),
        stream("ztunnel~1.1.1.1~ztunnel-a.istio-system~x", address={**GOOD, "synced": False}),
        stream("strange", address=GOOD, authorization={**GOOD, "last_error": "no"}),
    ]
    rows = [line.split() for line in render_proxy_status(streams, "cp1").splitlines()[1:]]
    assert rows == [
        ["strange", "Kubernetes", "cp1", "1.2.3", "2", "(WADS,WDS)", "ERROR", "(WADS)"],
        ["ztunnel-a.istio-system", "Kubernetes", "cp1", "1.2.3", "1", "(WDS)", "STALE"],
        ["ztunnel-b.istio-system", "Kubernetes", "cp1", "1.2.3", "2", "(WADS,WDS)", "SYNCED"],
    ]
