"""Port 15014: metrics, readiness and what the control plane thinks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from metalmesh import __version__
from metalmesh.service.http import HttpServer, Request, Response, json_text, text
from metalmesh.service.metrics import CONTENT_TYPE_OPENMETRICS, CONTENT_TYPE_TEXT, wants_openmetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.controlplane.config import ControlPlaneConfig
    from metalmesh.service.metrics import Registry


def debug_server(
    registry: Registry,
    config: ControlPlaneConfig,
    resources: Callable[[], Any],
    syncz: Callable[[], Any],
    ready: Callable[[], bool],
) -> HttpServer:
    """The server, not yet listening."""
    server = HttpServer()
    server.route("GET", "/metrics", lambda request: _metrics(registry, request))
    for path in ("/ready", "/healthz/ready"):  # istiod's own, and that of the other programs
        server.route("GET", path, lambda _: text("ready\n") if ready() else text("starting\n", 503))
    server.route("GET", "/version", lambda _: text(f"{__version__}\n"))
    server.route("GET", "/debug/resources", lambda _: _json(resources()))
    server.route("GET", "/debug/syncz", lambda _: _json(syncz()))
    server.route("GET", "/debug/config", lambda _: _json(asdict(config)))
    return server


def _metrics(registry: Registry, request: Request) -> Response:
    openmetrics = wants_openmetrics(request.headers.get("accept", ""))
    content_type = CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_TEXT
    return Response(200, registry.render(openmetrics=openmetrics).encode(), content_type)


def _json(value: Any) -> Response:
    return json_text(json.dumps(value, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """What JSON has no form for: addresses, paths and sets of names."""
    return sorted(item.value for item in value) if isinstance(value, frozenset) else str(value)
