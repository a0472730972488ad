"""Metrics, readiness and state of the node agent on port 15016."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from metalmesh.service.http import HttpServer, Request, Response, json_text, text
from metalmesh.service.metrics import (
    CONTENT_TYPE_OPENMETRICS,
    CONTENT_TYPE_TEXT,
    wants_openmetrics,
)

if TYPE_CHECKING:
    from metalmesh.node.agent import NodeAgent

_EVERYWHERE: Final = ("0.0.0.0", "::")


class NodeServer:
    """The agent's HTTP port."""

    def __init__(self, agent: NodeAgent) -> None:
        self._agent = agent
        self._http = HttpServer()
        self._http.route("GET", "/metrics", self._metrics)
        self._http.route("GET", "/healthz/ready", self._ready)
        self._http.route("GET", "/debug/state", self._state)

    async def listen(self) -> None:
        """Open the port."""
        await self._http.listen(_EVERYWHERE, self._agent.config.port)

    async def close(self) -> None:
        """Close it."""
        await self._http.close()

    def _metrics(self, request: Request) -> Response:
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        body = self._agent.metrics.registry.render(openmetrics=openmetrics)
        kind = CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_TEXT
        return Response(200, body.encode(), kind)

    def _ready(self, request: Request) -> Response:
        del request
        pending = self._agent.pending()
        if pending:
            return text(f"not ready, not in force: {', '.join(pending)}\n", 500)
        return text("ready\n")

    def _state(self, request: Request) -> Response:
        del request
        agent = self._agent
        policies = agent.mesh.policies
        state = {
            "node": agent.config.node_name,
            "status": agent.status(),
            "controlPlane": {"connected": agent.xds.connected, "error": agent.xds.last_error},
            "workloads": [
                {
                    "netns": record.netns,
                    "uid": record.uid,
                    "link": record.link,
                    "addresses": record.addresses,
                    "captured": record.captured,
                    "served": record.uid in agent.zds.acknowledged,
                    "known": record.uid in agent.mesh.known_uids,
                }
                for record in agent.state.records().values()
            ],
            "probes": agent.health.status(),
            "unhealthy": agent.health.unhealthy(),
            "ztunnels": agent.zds.ztunnels,
            "notInForce": agent.reconciler.failing,
            "networkPolicies": None if policies is None else [item.key for item in policies],
            "nodes": sorted(agent.mesh.nodes),
            "services": sorted(agent.mesh.state.services),
        }
        return json_text(json.dumps(state, indent=2) + "\n")
