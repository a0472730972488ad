"""Keeps a delta xDS stream to the control plane open (istio-facts 3.1).

The protocol is :class:`metalmesh.xds.delta_client.DeltaClient`'s; this is its gRPC shell with
reconnects: 10 ms doubling to 15 s, back to 10 ms after a stream that had worked.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from metalmesh.errors import ConfigError, ProtocolError
from metalmesh.proto import discovery_pb2 as pb
from metalmesh.service.backoff import Backoff
from metalmesh.service.logs import Bare, Log

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.service.channel import ControlPlane
    from metalmesh.service.metrics import Registry
    from metalmesh.xds.delta_client import DeltaClient

METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
BACKOFF_INITIAL_SECONDS: Final = 0.01
BACKOFF_MAXIMUM_SECONDS: Final = 15.0
#: while root certificate or token are missing: the node agent may write them any moment
UNJOINED_SECONDS: Final = 1.0
#: ends of a stream that are routine: a restart or a connection age limit of the server
_ROUTINE: Final = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
)

log = Log("metalmesh.xds")


class XdsMetrics:
    """Counters of the stream, with ztunnel's names (istio-facts 8.1)."""

    def __init__(self, registry: Registry) -> None:
        self.terminations = registry.counter(
            "istio_xds_connection_terminations_total",
            "The total number of terminations of xDS streams",
            ("reason",),
        )
        self.messages = registry.counter(
            "istio_xds_message_total", "Total number of messages received", ("url",)
        )
        self.bytes = registry.counter(
            "istio_xds_message_bytes_total", "Total number of bytes received", ("url",)
        )


class XdsClient:
    """Runs a :class:`DeltaClient` against a control plane until it is cancelled.

    ``on_connected`` is called at the first answer of each stream.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        client: DeltaClient,
        metrics: XdsMetrics,
        on_connected: Callable[[], None] | None = None,
    ) -> None:
        self._on_connected = on_connected
        self._control_plane = control_plane
        self._client = client
        self._metrics = metrics
        self._backoff = Backoff(BACKOFF_INITIAL_SECONDS, BACKOFF_MAXIMUM_SECONDS)
        self._unjoined = False
        #: whether a stream is open now
        self.connected = False
        #: why the last stream ended
        self.last_error = ""

    async def run(self) -> None:
        """Connect, and connect again, for ever."""
        while True:
            reason = await self._run_stream()
            self.connected = False
            self._metrics.terminations.inc((reason,))
            delay = self._backoff.next_delay()
            await asyncio.sleep(min(delay, UNJOINED_SECONDS) if self._unjoined else delay)

    async def _run_stream(self) -> str:
        """One stream from its opening to its end; return the reason for the metric."""
        self._unjoined = False
        try:
            async with self._control_plane.open_channel() as channel:
                await self._converse(channel)
            self._ended("the control plane closed the stream", routine=True)
        except ConfigError as error:
            self._unjoined = True
            self._ended(str(error), routine=False)
            return "ConnectionError"
        except ProtocolError as error:
            self._ended(str(error), routine=False)
            return "Error"
        except grpc.aio.AioRpcError as error:
            routine = self.connected and error.code() in _ROUTINE
            self._ended(f"{error.code().name}: {error.details()}", routine=routine)
            if not self.connected and error.code() is grpc.StatusCode.UNAVAILABLE:
                return "ConnectionError"
            return "Reconnect" if routine else "Error"
        except Exception as error:
            # a fault of ours must not end the process, which serves with what it has
            log.exception("stream broken by an internal error", error)
            return "Error"
        return "Complete"

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(
            METHOD,
            request_serializer=pb.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=pb.DeltaDiscoveryResponse.FromString,
        )(None, metadata=self._control_plane.call_metadata())
        for request in self._client.open_stream():
            await call.write(request)
        async for response in call:
            if not self.connected:
                self.connected = True
                self.last_error = ""
                self._backoff.reset()
                log.info("connected", {"address": Bare(self._control_plane.address)})
                if self._on_connected is not None:
                    self._on_connected()
            self._count(response)
            answer = self._client.receive(response)
            if answer.HasField("error_detail"):
                log.warning(
                    "resources refused",
                    {"url": response.type_url, "error": answer.error_detail.message},
                )
            await call.write(answer)

    def _count(self, response: pb.DeltaDiscoveryResponse) -> None:
        self._metrics.messages.inc((response.type_url,))
        self._metrics.bytes.inc((response.type_url,), response.ByteSize())

    def _ended(self, text: str, *, routine: bool) -> None:
        fields = {"address": Bare(self._control_plane.address), "error": text}
        # the same failure over and over is one line
        level = log.debug if text == self.last_error else log.info if routine else log.warning
        level("stream ended", fields)
        self.last_error = text
