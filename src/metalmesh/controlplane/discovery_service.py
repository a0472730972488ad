"""Delta ADS: one :class:`DeltaStream` per call, fed by requests and by changes of the snapshot.

Nothing is queued for a client: a change only marks names, and a response is made from the newest
snapshot when the client has answered the last one and the transport takes it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from metalmesh.controlplane.identity_service import TEXT_UNAUTHENTICATED, refuse
from metalmesh.errors import ProtocolError, TokenError
from metalmesh.proto import discovery_pb2 as pb
from metalmesh.service.logs import Bare, Log
from metalmesh.xds.delta_server import DeltaStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from metalmesh.controlplane.identity_service import Context, NodeAuthenticator
    from metalmesh.controlplane.metrics import ControlPlaneMetrics
    from metalmesh.controlplane.snapshot import Snapshot
    from metalmesh.pki.tokens import NodeToken

ADS_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ADS_METHOD: Final = "DeltaAggregatedResources"
#: longest part of a client's text that is logged
_LOGGED_CHARACTERS: Final = 2048

log = Log("metalmesh.controlplane.xds")


class _Session:
    """One open stream."""

    def __init__(self, token: NodeToken, peer: str) -> None:
        self.token = token
        self.node = node = token.node
        self.peer = peer
        self.client_id = ""
        #: what the client says of itself
        self.version = ""
        self.cluster = ""
        self.connected_at = time.time()
        self.delta = DeltaStream(node)
        self.wake = asyncio.Event()
        #: why the stream must end although its client did nothing
        self.revoked = ""
        self.stopping = False


class DiscoveryService:
    """Every open stream, and what they are served from."""

    def __init__(
        self,
        authenticator: NodeAuthenticator,
        snapshot: Callable[[], Snapshot],
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._authenticator = authenticator
        self._snapshot = snapshot
        self._metrics = metrics
        self._sessions: set[_Session] = set()
        #: something was confirmed, or somebody left
        self._progress = asyncio.Event()
        metrics.registry.before_scrape(self._count_streams)

    def publish(self, changes: Mapping[str, frozenset[str]]) -> None:
        """Tell every stream which names changed."""
        snapshot = self._snapshot()
        for session in self._sessions:
            for type_url, names in changes.items():
                session.delta.changed(type_url, names, snapshot)
            session.wake.set()

    async def settle(self, type_url: str, seconds: float) -> bool:
        """Wait until every client has confirmed what it was sent of a type; false: not in time."""
        try:
            async with asyncio.timeout(seconds):
                while not all(session.delta.settled(type_url) for session in self._sessions):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    def end_unauthorized(self) -> None:
        """End the streams whose token has expired or was revoked."""
        for session in self._sessions:
            try:
                self._authenticator.check_still_valid(session.token)
            except TokenError as error:
                log.info("stream ended", {"node": session.node, "reason": str(error)})
                session.revoked = str(error)
                session.wake.set()

    def end_all(self) -> None:
        """End every stream in good order, because the service stops; clients come back."""
        for session in self._sessions:
            session.stopping = True
            session.wake.set()

    async def delta_aggregated_resources(
        self, requests: AsyncIterator[pb.DeltaDiscoveryRequest], context: Context
    ) -> None:
        """Serve one stream until either side ends it."""
        token = await self._authenticator.authenticate(context)
        session = _Session(token, context.peer())
        self._sessions.add(session)
        reader = asyncio.ensure_future(self._read(session, requests))
        log.info("client connected", {"node": session.node, "peer": Bare(session.peer)})
        try:
            await self._write(session, reader, context)
        finally:
            reader.cancel()
            self._sessions.discard(session)
            self._progress.set()
            log.info(
                "client disconnected",
                {"node": session.node, "client": session.client_id, "peer": Bare(session.peer)},
            )

    async def _read(
        self, session: _Session, requests: AsyncIterator[pb.DeltaDiscoveryRequest]
    ) -> None:
        async for request in requests:
            if request.HasField("node") and not session.client_id:
                session.client_id = request.node.id[:256]
                session.version = _metadata(request.node, "ISTIO_VERSION")
                session.cluster = _metadata(request.node, "CLUSTER_ID")
            answer = session.delta.receive(request, self._snapshot())
            if answer is not None:
                self._note_answer(session, answer.type_url, answer.error)
                self._progress.set()
            session.wake.set()

    def _note_answer(self, session: _Session, type_url: str, error: str) -> None:
        if not error:
            self._metrics.acks.inc((type_url,))
            return
        self._metrics.nacks.inc((type_url,))
        log.warning(
            "client refused resources",
            {
                "node": session.node,
                "client": session.client_id,
                "type_url": type_url,
                "error": error[:_LOGGED_CHARACTERS],
            },
        )

    async def _write(
        self, session: _Session, reader: asyncio.Future[None], context: Context
    ) -> None:
        """Send what is due whenever something happened; ends with the client's side."""
        reader.add_done_callback(lambda _: session.wake.set())
        while True:
            await session.wake.wait()
            session.wake.clear()
            while (response := session.delta.next_response(self._snapshot())) is not None:
                self._metrics.pushes.inc((response.type_url,))
                self._metrics.push_bytes.inc((response.type_url,), response.ByteSize())
                await context.write(response)
            if session.revoked:
                await refuse(context, grpc.StatusCode.UNAUTHENTICATED, TEXT_UNAUTHENTICATED)
            if session.stopping:
                return
            if reader.done():
                break
        error = reader.exception()
        if isinstance(error, ProtocolError):
            log.warning("stream ended", {"node": session.node, "error": str(error)})
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if error is not None:
            raise error

    def _count_streams(self) -> None:
        self._metrics.streams.clear()
        for session in self._sessions:
            self._metrics.streams.inc((session.client_id.partition("~")[0] or "unknown",))

    def syncz(self) -> list[dict[str, Any]]:
        """Every stream and what it has (``/debug/syncz``)."""
        return [
            {
                "node": session.node,
                "client": session.client_id,
                "version": session.version,
                "cluster": session.cluster,
                "peer": session.peer,
                "connected_at": session.connected_at,
                "types": session.delta.status(),
            }
            for session in sorted(self._sessions, key=lambda item: (item.node, item.client_id))
        ]

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The gRPC handler of the service."""
        method = grpc.stream_stream_rpc_method_handler(
            self.delta_aggregated_resources,
            request_deserializer=pb.DeltaDiscoveryRequest.FromString,
            response_serializer=pb.DeltaDiscoveryResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(ADS_SERVICE, {ADS_METHOD: method})


def _metadata(node: pb.Node, key: str) -> str:
    """A text of a client's metadata; it is its own claim and only shown."""
    return node.metadata.fields[key].string_value[:64] if key in node.metadata.fields else ""
