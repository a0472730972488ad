"""Admin, metrics and readiness ports of the ztunnel (istio-facts 8.1, 8.3, 8.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.constants import PORT_METRICS, PORT_READINESS, PORT_ZTUNNEL_ADMIN
from metalmesh.errors import ConfigError
from metalmesh.service import logs
from metalmesh.service.http import HttpServer, Request, Response, json_text, text
from metalmesh.service.metrics import (
    CONTENT_TYPE_OPENMETRICS,
    CONTENT_TYPE_TEXT,
    wants_openmetrics,
)
from metalmesh.ztunnel import messages
from metalmesh.ztunnel.workload_api import WorkloadApi

if TYPE_CHECKING:
    from metalmesh.ztunnel.main import Ztunnel

LOOPBACK: Final = ("127.0.0.1", "::1")
EVERYWHERE: Final = ("0.0.0.0", "::")
USAGE: Final = (
    "usage: POST /logging\t\t\t\t\t\t(to list current level)\n"
    "usage: POST /logging?level=<level>\t\t\t\t(to change global levels)\n"
    "usage: POST /logging?level={mod1}:{level1},{mod2}:{level2}\t(to change specific mods' level)\n"
    "usage: POST /logging?reset=true\t\t\t\t(to go back to the configured level)\n\n"
    f"hint: loglevel:\t{'|'.join(logs.LEVELS)}\n"
)
INDEX: Final = """<!doctype html><title>ztunnel</title><h1>ztunnel of metalmesh</h1><ul>
<li><a href="/config_dump">config_dump</a>: what it knows of the mesh</ul>
<ul><li>POST /logging?level=debug<li>POST /quitquitquit</ul>
"""


class Servers:
    """The three ports."""

    def __init__(self, ztunnel: Ztunnel) -> None:
        self._ztunnel = ztunnel
        self._admin = HttpServer()
        self._metrics = HttpServer()
        self._readiness = HttpServer()
        self._admin.route("GET", "/", self._index)
        self._admin.route("GET", "/config_dump", self._config_dump)
        self._admin.route("POST", "/logging", self._logging)
        self._admin.route("POST", "/quitquitquit", self._quit)
        for path in ("/metrics", "/stats/prometheus"):
            self._metrics.route("GET", path, self._render_metrics)
        self._readiness.route("GET", "/healthz/ready", self._ready)
        self._workload_api = WorkloadApi(ztunnel) if ztunnel.config.workload_api_socket else None

    async def listen(self) -> None:
        """Open the ports."""
        await self._admin.listen(LOOPBACK, PORT_ZTUNNEL_ADMIN)
        await self._metrics.listen(EVERYWHERE, PORT_METRICS)
        await self._readiness.listen(EVERYWHERE, PORT_READINESS)
        if self._workload_api is not None:
            await self._workload_api.listen()

    async def close(self) -> None:
        """Close them."""
        for server in (self._admin, self._metrics, self._readiness):
            await server.close()
        if self._workload_api is not None:
            await self._workload_api.close()

    def _index(self, request: Request) -> Response:
        del request
        return Response(200, INDEX.encode(), "text/html; charset=utf-8")

    async def _config_dump(self, request: Request) -> Response:
        del request
        # rarely used and big: not worth its memory before it is
        from metalmesh.ztunnel.dump import config_dump

        return json_text(await config_dump(self._ztunnel))

    def _logging(self, request: Request) -> Response:
        ztunnel = self._ztunnel
        wanted = request.query.get("level", "")
        try:
            if request.query.get("reset") == "true":
                logs.reset_levels(ztunnel.config.log_level)
                ztunnel.pool.broadcast(messages.SetLogLevel(level=ztunnel.config.log_level))
            elif "reset" in request.query or ("level" not in request.query and request.query):
                return text(f"Invalid request\n{USAGE}", 400)
            if "level" in request.query:
                logs.apply_levels(wanted)
                if wanted.lower() in logs.LEVELS:  # workers have one level for everything
                    ztunnel.pool.broadcast(messages.SetLogLevel(level=wanted.lower()))
        except ConfigError as error:
            return text(f"{error}\n{USAGE}", 400)
        return text(f"current log level is {logs.current_levels()}\n")

    def _quit(self, request: Request) -> Response:
        del request
        self._ztunnel.stop_requested.set()
        return text("shutdown now\n")

    async def _render_metrics(self, request: Request) -> Response:
        ztunnel = self._ztunnel
        await ztunnel.collect_metrics()
        ztunnel.metrics.refresh(ztunnel)
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        body = ztunnel.registry.render(
            openmetrics=openmetrics, extra=ztunnel.series.render(openmetrics=openmetrics)
        )
        kind = CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_TEXT
        return Response(200, body.encode(), kind)

    def _ready(self, request: Request) -> Response:
        del request
        pending = self._ztunnel.pending()
        if pending:
            return text(f"not ready, pending: {', '.join(pending)}\n", 500)
        return text("ready\n")
