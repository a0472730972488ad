"""The process: messages of main on one side, local workloads on the other."""

from __future__ import annotations

import gc
import os
import socket
from typing import TYPE_CHECKING, Final

from metalmesh.errors import CertificateError, MetalmeshError
from metalmesh.ztunnel import messages as m
from metalmesh.ztunnel.worker.certificates import make_credentials
from metalmesh.ztunnel.worker.context import Context
from metalmesh.ztunnel.worker.logs import LogWriter
from metalmesh.ztunnel.worker.loop import READ, WRITE, Loop, report_fault
from metalmesh.ztunnel.worker.server import WorkloadServer
from metalmesh.ztunnel.worker.workloads import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.ztunnel.ipc import Channel

#: how long connections may go on when main has died without a word, seconds
_ORPHAN_DEADLINE_SECONDS: Final = 25.0
#: main pings every 5 s; after a crash the next one takes a second to be there
_SILENCE_SECONDS: Final = 20.0
#: pause between two looks at what is still open; it grows, since a drain may take days
_DRAIN_POLL_SECONDS: Final = (0.05, 1.0)
DRAINED: Final = "connection closed due to connection drain"


class Worker:
    """One data worker."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop = Loop()
        self._log = LogWriter(self._loop)
        self._context = Context(self._loop, self._log, self._send)
        self._servers: dict[str, WorkloadServer] = {}
        self._keylog_path = ""
        #: when everything ends that is still open; None: not draining
        self._drain_until: float | None = None
        self._heard_at = self._loop.now
        self._orphan = False
        self._fds: list[int] = []
        self._handlers: dict[type, Callable[..., None]] = {
            m.Configure: self._configure,
            m.AddWorkload: self._add_workload,
            m.UpdateWorkload: self._update_workload,
            m.RemoveWorkload: self._remove_workload,
            m.Certificate: self._certificate,
            m.CertificateUnavailable: self._certificate_unavailable,
            m.Revocations: self._revocations,
            m.Policies: self._policies,
            m.RouteReply: self._route_reply,
            m.InvalidateRoutes: self._invalidate_routes,
            m.SourceReply: self._source_reply,
            m.Collect: self._collect,
            m.Drain: self._drain,
            m.SetLogLevel: self._set_log_level,
            m.Ping: self._ping,
        }
        self._watched = READ
        self._loop.watch(channel.fileno(), READ, self)

    def run(self) -> None:
        """Serve until drained."""
        self._send(m.Ready(pid=os.getpid()))
        self._loop.call_later(_SILENCE_SECONDS, self._check_main)
        gc.collect()
        gc.freeze()
        self._loop.run()
        self._channel.close()

    # --- main
    def _send(self, message: m.Message) -> None:
        self._channel.send(message)
        self._watch_channel()

    def _watch_channel(self) -> None:
        """Wait for room while main has not taken everything."""
        wanted = READ | WRITE if self._channel.wants_write else READ
        if wanted != self._watched and not self._channel.closed:
            self._watched = wanted
            self._loop.rewatch(self._channel.fileno(), wanted)

    def on_event(self, _events: int) -> None:
        """Main has said something, takes more, or has died."""
        self._heard_at = self._loop.now
        if self._orphan and not self._channel.closed:
            self._orphan = False
            self._check_main()
        if self._channel.wants_write:
            self._channel.flush()
            self._watch_channel()
        for message, fds in self._channel.receive():
            self._fds = fds
            try:
                self._handlers[type(message)](message)
            except MetalmeshError as error:
                self._log.line("error", "worker", str(error))
            except Exception:  # the other messages must still be heard
                report_fault(message)
            finally:
                for fd in self._fds:
                    os.close(fd)
                self._fds = []
        if self._channel.closed:
            self._loop.unwatch(self._channel.fileno())
            self._orphaned("main process is gone: draining")

    def on_fault(self) -> None:
        """The pipe is broken: without main we can only finish what is open."""
        self._loop.unwatch(self._channel.fileno())
        self._channel.close()
        self._orphaned("pipe to the main process is broken: draining")

    def _check_main(self) -> None:
        """The pipe outlives main, in systemd's fd store, so that the next one can adopt us."""
        if self._orphan:
            return
        silence = self._loop.now - self._heard_at
        if silence >= _SILENCE_SECONDS:
            self._orphaned(f"main process is silent for {silence:.0f} s: draining")
        else:
            self._loop.call_later(_SILENCE_SECONDS - silence, self._check_main)

    def _orphaned(self, text: str) -> None:
        """Also when draining already, with more time: nobody tells us of policies any more."""
        if not self._orphan:
            self._orphan = True
            self._log.line("error", "worker", text)
            self._drain(m.Drain(deadline_seconds=_ORPHAN_DEADLINE_SECONDS))

    def _configure(self, message: m.Configure) -> None:
        self._log.configure(message.log_level, message.log_format)
        self._log.rbac_level = message.rbac_level
        self._context.recorder.access_log = message.access_log
        self._keylog_path = message.keylog_path
        self._context.trust_domains = frozenset(message.trust_domains)

    def _set_log_level(self, message: m.SetLogLevel) -> None:
        self._log.set_level(message.level)

    def _ping(self, message: m.Ping) -> None:
        self._send(m.Pong(request_id=message.request_id))

    # --- workloads
    def _add_workload(self, message: m.AddWorkload) -> None:
        if len(self._fds) != 4:
            text = f"workload {message.uid}: {len(self._fds)} descriptors instead of 4"
            self._send(m.Ack(uid=message.uid, error=text))
            return
        *listener_fds, netns_fd = self._fds
        self._fds = []
        known = self._servers.pop(message.uid, None)
        if known is not None:
            known.close()
        listeners = tuple(socket.socket(fileno=fd) for fd in listener_fds)
        for listener in listeners:
            listener.settimeout(0)
        server = WorkloadServer(self._context, Workload(message, netns_fd, self._log), listeners)
        self._servers[message.uid] = server
        if self._drain_until is not None:
            server.drain()
        self._send(m.Ack(uid=message.uid))

    def _update_workload(self, message: m.UpdateWorkload) -> None:
        server = self._servers.get(message.uid)
        if server is not None:
            server.update(message)

    def _remove_workload(self, message: m.RemoveWorkload) -> None:
        server = self._servers.pop(message.uid, None)
        if server is not None:
            server.close()

    def _policies(self, message: m.Policies) -> None:
        server = self._servers.get(message.uid)
        if server is not None:
            server.workload.set_policies(message)

    def _certificate(self, message: m.Certificate) -> None:
        try:
            credentials = make_credentials(message, self._keylog_path)
        except CertificateError as error:
            self._context.certificates.fail(message.identity, str(error))
            raise
        self._context.certificates.put(credentials)

    def _certificate_unavailable(self, message: m.CertificateUnavailable) -> None:
        self._context.certificates.fail(message.identity, message.error)

    def _revocations(self, message: m.Revocations) -> None:
        self._context.revoked.keys = frozenset(message.keys)
        for server in self._servers.values() if message.keys else ():
            server.end_revoked()

    # --- routes
    def _route_reply(self, message: m.RouteReply) -> None:
        for server in self._servers.values():
            if server.routes.answer(message.request_id, message.route):
                return

    def _invalidate_routes(self, _message: m.InvalidateRoutes) -> None:
        self._context.sources.forget()
        for server in self._servers.values():
            server.routes.invalidate()

    def _source_reply(self, message: m.SourceReply) -> None:
        self._context.sources.answer(message.request_id, message.labels)

    # --- questions
    def _collect(self, message: m.Collect) -> None:
        recorder = self._context.recorder
        if message.what == "metrics":
            for flow in recorder.flows:
                flow.report_bytes()
            metrics, now = self._context.metrics, self._loop.now
            metrics.ejected = sum(item.outliers.count(now) for item in self._servers.values())
            rows = metrics.snapshot(self._log.dropped)
            self._send(m.MetricsReply(request_id=message.request_id, series=rows))
        else:
            found = tuple(flow.describe() for flow in recorder.flows)
            self._send(m.ConnectionsReply(request_id=message.request_id, connections=found))

    # --- the end
    def _drain(self, message: m.Drain) -> None:
        begun = self._drain_until is not None
        self._drain_until = self._loop.now + message.deadline_seconds
        if not begun:
            for server in self._servers.values():
                server.drain()
            self._check_drained(_DRAIN_POLL_SECONDS[0])

    def _check_drained(self, pause: float) -> None:
        # connections that still wait for a route or a certificate are no flows yet
        idle = not self._context.recorder.flows and not any(
            server.inbound or server.outbound or server.plain for server in self._servers.values()
        )
        assert self._drain_until is not None
        left = self._drain_until - self._loop.now
        if not idle and left > 0:
            later = min(pause * 1.2, _DRAIN_POLL_SECONDS[1])
            self._loop.call_later(min(pause, left), lambda: self._check_drained(later))
            return
        for server in self._servers.values():
            server.close(DRAINED)
        self._servers.clear()
        self._send(m.Drained())
        self._loop.stop()
