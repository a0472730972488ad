"""The node token: gained once with a join token, renewed at half of its life.

A join token that is there is used and removed, whatever node token there is: whoever put it there
wants the node to join anew. A join token that was refused is not sent again. Tokens are never
logged.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import grp
import hashlib
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from metalmesh.errors import ConfigError, MetalmeshError, TokenError
from metalmesh.node.state import write_file
from metalmesh.proto import node_pb2 as pb
from metalmesh.service.backoff import Backoff
from metalmesh.service.logs import Bare, Log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from metalmesh.node.config import NodeConfig
    from metalmesh.node.metrics import NodeMetrics
    from metalmesh.service.channel import ControlPlane

_JOIN: Final = "/metalmesh.node.v1.NodeService/Join"
_RENEW: Final = "/metalmesh.node.v1.NodeService/Renew"
_HEALTH: Final = "/metalmesh.node.v1.NodeService/ReportHealth"
_TIMEOUT_SECONDS: Final = 10.0
_RETRY_MAX_SECONDS: Final = 30.0
#: how often a missing join token is looked for, and the longest sleep between two looks
_LOOK_SECONDS: Final = 2.0
_MODE: Final = 0o640
_REFUSALS: Final = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
)

log = Log("metalmesh.node.credentials")


@dataclass(frozen=True, slots=True)
class TokenLife:
    """Instants of a token, unix seconds."""

    issued_at: float
    expires_at: float

    @property
    def renew_at(self) -> float:
        """Half of its life."""
        return (self.issued_at + self.expires_at) / 2


def token_life(token: str) -> TokenLife:
    """Read when a token ends; its signature is the control plane's business."""
    try:
        payload = token.split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return TokenLife(float(claims["iat"]), float(claims["exp"]))
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TokenError(f"node token is not a JWT with iat and exp: {error!r}") from error


class NodeCredentials:
    """Keeps ``token_path`` valid."""

    def __init__(
        self, config: NodeConfig, control_plane: ControlPlane, metrics: NodeMetrics
    ) -> None:
        self._config = config
        self._control_plane = control_plane
        self._metrics = metrics
        self._backoff = Backoff(0.5, _RETRY_MAX_SECONDS)
        self._refused = ""
        self._complaint = ""
        #: set while there is a node token that has not expired
        self.joined = asyncio.Event()

    async def run(self) -> None:
        """Join and renew until cancelled."""
        while True:
            try:
                pause = await self._step(time.time())
                self._complaint = ""
            except (MetalmeshError, OSError) as error:
                self._complain(str(error))
                pause = self._backoff.next_delay()
            await asyncio.sleep(pause)

    async def _step(self, now: float) -> float:
        """Do what is due; return how long to wait."""
        join_token = self._read(self._config.join_token_path)
        if join_token and _digest(join_token) != self._refused:
            await self._join(join_token)
        token = self._read(self._config.token_path)
        life = token_life(token) if token else None
        if life is None or life.expires_at <= now:
            self.joined.clear()
            raise TokenError(
                f"node {self._config.node_name} has no valid node token: mint a join token with "
                f"`metalmesh token create --node {self._config.node_name}` on the control plane "
                f"and place it in {self._config.join_token_path}"
            )
        self._metrics.token_expiry.set(life.expires_at)
        self.joined.set()
        if life.renew_at <= now:
            await self._renew()
            return 0.0
        return min(life.renew_at - now, _LOOK_SECONDS)

    async def _join(self, join_token: str) -> None:
        request = pb.JoinRequest(join_token=join_token, node_name=self._config.node_name)
        try:
            credential = await self._credential(_JOIN, request, ())
        except TokenError:
            self._refused = _digest(join_token)
            raise
        self._store(credential.node_token)
        self._config.join_token_path.unlink(missing_ok=True)
        log.info("joined", {"node": self._config.node_name})

    async def _renew(self) -> None:
        try:
            metadata = self._control_plane.call_metadata()
            credential = await self._credential(_RENEW, pb.RenewRequest(), metadata)
        except (MetalmeshError, OSError):
            self._metrics.token_renewals.inc(("failed",))
            raise
        self._store(credential.node_token)
        self._metrics.token_renewals.inc(("renewed",))
        self._backoff.reset()
        log.info("node token renewed")

    async def report_health(self, unhealthy: Mapping[str, str], *, wait: bool) -> bool:
        """Say which workloads of this node are not well; MetalmeshError when it was not heard.

        With ``wait``, true means that every client of the control plane has confirmed.
        """
        if not self.joined.is_set():
            raise TokenError("the node has not joined")
        items = [pb.Unhealthy(uid=uid, reason=why) for uid, why in sorted(unhealthy.items())]
        request = pb.HealthReport(unhealthy=items, wait=wait)
        metadata = self._control_plane.call_metadata()
        reply = await self._call(_HEALTH, request, metadata, pb.HealthReply)
        return bool(reply.settled)

    async def _credential(
        self, method: str, request: Any, metadata: tuple[tuple[str, str], ...]
    ) -> pb.NodeCredential:
        reply = await self._call(method, request, metadata, pb.NodeCredential)
        if not reply.node_token:
            raise TokenError(f"control plane {self._control_plane.address} sent no node token")
        assert isinstance(reply, pb.NodeCredential)
        return reply

    async def _call(
        self, method: str, request: Any, metadata: tuple[tuple[str, str], ...], answer: Any
    ) -> Any:
        address = self._control_plane.address
        try:
            async with self._control_plane.open_channel() as channel:
                call = channel.unary_unary(
                    method,
                    request_serializer=type(request).SerializeToString,
                    response_deserializer=answer.FromString,
                )
                return await call(request, metadata=metadata, timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            text = f"control plane {address} answered {error.code().name}: {error.details()}"
            if error.code() in _REFUSALS:
                what = "join token" if method == _JOIN else "node token"
                raise TokenError(f"{what} refused: {text}; place a new join token") from error
            raise ConfigError(f"{text}; is it up, and root_cert_path its root?") from error

    def _store(self, token: str) -> None:
        life = token_life(token)
        write_file(self._config.token_path, token.encode(), _MODE)
        try:
            group = grp.getgrnam(self._config.token_group).gr_gid
        except KeyError:
            raise ConfigError(
                f"token_group {self._config.token_group!r} does not exist on this machine; the "
                "ztunnel could not read the node token"
            ) from None
        os.chown(self._config.token_path, -1, group)
        self._metrics.token_expiry.set(life.expires_at)
        self._backoff.reset()

    def _complain(self, text: str) -> None:
        """Say it once, not at every attempt."""
        if text != self._complaint:
            log.error(
                "no node token" if not self.joined.is_set() else "node token not renewed",
                {"error": text, "address": Bare(self._control_plane.address)},
            )
        self._complaint = text

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise TokenError(f"{path} cannot be read: {error.strerror}") from error


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
