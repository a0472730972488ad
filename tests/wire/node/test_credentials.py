"""Joining and renewing over real gRPC, with a control plane whose tokens live for seconds."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from metalmesh.errors import TokenError
from metalmesh.node.config import NodeConfig
from metalmesh.node.credentials import NodeCredentials, token_life
from metalmesh.node.metrics import NodeMetrics
from metalmesh.proto import node_pb2 as pb

GOOD = "0123456789abcdef.good"
PATIENCE_SECONDS = 10.0


def make_token(number: int, life_seconds: float) -> str:
    now = time.time()
    claims = {"iat": now, "exp": now + life_seconds, "jti": number}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"header.{payload}.signature"


class Plane:
    """NodeService on loopback; also stands for the channel that leads there."""

    def __init__(self) -> None:
        self.address = ""
        self.life_seconds = 2.0
        self.joins: list[tuple[str, str]] = []
        self.bearers: list[str] = []
        self.refuse_renewal = False
        self.token_path = Path()
        self._issued = 0

    def _issue(self) -> pb.NodeCredential:
        self._issued += 1
        return pb.NodeCredential(node_token=make_token(self._issued, self.life_seconds))

    async def join(self, request: pb.JoinRequest, context) -> pb.NodeCredential:
        self.joins.append((request.join_token, request.node_name))
        if request.join_token != GOOD:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "join token is not valid")
        return self._issue()

    async def renew(self, request: pb.RenewRequest, context) -> pb.NodeCredential:
        if self.refuse_renewal:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "out of order")
        self.bearers.append(dict(context.invocation_metadata())["authorization"])
        return self._issue()

    def open_channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address)

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token_path.read_text()}"),)


@contextlib.asynccontextmanager
async def running(tmp_path: Path, join_token: str) -> AsyncIterator[tuple[Plane, NodeCredentials]]:
    """A plane, and credentials that are being kept."""
    plane = Plane()
    server = grpc.aio.server()
    methods = {
        "Join": grpc.unary_unary_rpc_method_handler(
            plane.join, pb.JoinRequest.FromString, pb.NodeCredential.SerializeToString
        ),
        "Renew": grpc.unary_unary_rpc_method_handler(
            plane.renew, pb.RenewRequest.FromString, pb.NodeCredential.SerializeToString
        ),
    }
    service = grpc.method_handlers_generic_handler("metalmesh.node.v1.NodeService", methods)
    server.add_generic_rpc_handlers((service,))
    plane.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    config = NodeConfig(
        node_name="node1",
        token_path=tmp_path / "token",
        join_token_path=tmp_path / "join",
        token_group="root",
    )
    plane.token_path = config.token_path
    config.join_token_path.write_text(join_token)
    credentials = NodeCredentials(config, plane, NodeMetrics())
    task = asyncio.create_task(credentials.run())
    try:
        yield plane, credentials
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(None)


async def until(condition) -> None:
    """Wait for a condition the loop will bring about."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def test_token_is_renewed_with_itself_before_it_ends(tmp_path):
    async def story() -> None:
        async with running(tmp_path, GOOD + "\n") as (plane, credentials):
            await asyncio.wait_for(credentials.joined.wait(), PATIENCE_SECONDS)
            assert plane.joins == [(GOOD, "node1")]
            assert not (tmp_path / "join").exists()
            first = (tmp_path / "token").read_text()
            ends_at = token_life(first).expires_at
            await until(lambda: len(plane.bearers) >= 2)
            assert plane.bearers[0] == f"Bearer {first}"
            assert plane.bearers[1] != plane.bearers[0]
            assert credentials.joined.is_set()
            assert token_life((tmp_path / "token").read_text()).expires_at > ends_at

    asyncio.run(story())


def test_refused_join_token_is_not_sent_again_but_another_is(tmp_path):
    async def story() -> None:
        async with running(tmp_path, "0123456789abcdef.bad") as (plane, credentials):
            await until(lambda: plane.joins)
            (tmp_path / "join").write_text(GOOD)
            await asyncio.wait_for(credentials.joined.wait(), PATIENCE_SECONDS)
            assert [token for token, _ in plane.joins] == ["0123456789abcdef.bad", GOOD]

    asyncio.run(story())


def test_expired_token_counts_for_nothing_until_a_new_join(tmp_path):
    async def story() -> None:
        async with running(tmp_path, GOOD) as (plane, credentials):
            await asyncio.wait_for(credentials.joined.wait(), PATIENCE_SECONDS)
            plane.refuse_renewal = True
            await until(lambda: not credentials.joined.is_set())
            (tmp_path / "join").write_text(GOOD)
            await until(credentials.joined.is_set)
            assert len(plane.joins) == 2

    asyncio.run(story())


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "a.e30.c", "a.bnVsbA.c"])
def test_what_is_no_token_is_said_to_be_none(token):
    with pytest.raises(TokenError, match="iat and exp"):
        token_life(token)
