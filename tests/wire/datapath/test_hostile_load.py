"""Peers that hold on to as much as they can: memory stays bounded, and others are served."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metalmesh.constants import PORT_HBONE
from tests.bench.load import pss_megabytes
from tests.support import tcp_apps as apps
from tests.support import tls13
from tests.support.data_worker import Pair, captured_pair, dial_uncaptured, hbone_client
from tests.support.waits import WAITS
from tests.wire.datapath.conftest import APP_PORT
from tests.wire.datapath.test_refusals import CLIENT, CONNECT_BLOCK, HELLO, frame

#: what one hostile peer may cost a worker; a connection's windows alone are 16 MiB
BOUND_MEGABYTES = 48
SINK_PORT = 9999
#: far more than a peer may send without a word of data
KEY_UPDATES = 20_000
Attack = Callable[[Pair, contextlib.ExitStack], None]


@pytest.fixture(scope="module")
def victim() -> Iterator[Pair]:
    with captured_pair(log_level="error") as pair:
        pair.route(APP_PORT)
        yield pair


def _dial(pair: Pair) -> socket.socket:
    return dial_uncaptured(pair.client.where, pair.server.addresses[0], PORT_HBONE)


def _secured(pair: Pair, stack: contextlib.ExitStack) -> ssl.SSLSocket:
    context = pair.ca.leaf(CLIENT).context(ssl.PROTOCOL_TLS_CLIENT)
    return stack.enter_context(context.wrap_socket(_dial(pair)))


def half_open_tls(pair: Pair, stack: contextlib.ExitStack) -> None:
    """Connections that never say a word."""
    for _ in range(300):
        stack.enter_context(_dial(pair))


def dribbled_hello(pair: Pair, stack: contextlib.ExitStack) -> None:
    """A TLS record announced and never finished, on many connections."""
    for _ in range(100):
        stack.enter_context(_dial(pair)).sendall(b"\x16\x03\x01\x3f\xff" + bytes(3000))


def streams_that_never_send(pair: Pair, stack: contextlib.ExitStack) -> None:
    """All 200 streams of several connections, open and idle."""
    for _ in range(3):
        client = stack.enter_context(hbone_client(pair))
        assert client.flood(f"{pair.server.addresses[0]}:{SINK_PORT}", 200).count("200") == 200


def windows_of_zero(pair: Pair, stack: contextlib.ExitStack) -> None:
    """Answers are asked for and no window is ever granted for them."""
    sock = _secured(pair, stack)
    hello = HELLO[:24] + frame(4, 0, 0, struct.pack(">HI", 4, 0))
    requests = b"".join(
        frame(1, 4, stream, CONNECT_BLOCK) + frame(0, 0, stream, bytes(16000))
        for stream in range(1, 199, 2)
    )
    sock.sendall(hello + requests)
    sock.recv(1)


def answers_that_nobody_reads(pair: Pair, stack: contextlib.ExitStack) -> None:
    """The peer asks for PINGs as fast as allowed and never reads one."""
    sock = _secured(pair, stack)
    sock.settimeout(2)
    with contextlib.suppress(OSError):
        sock.sendall(HELLO + frame(6, 0, 0, bytes(8)) * 200_000)


def applications_that_do_not_read(pair: Pair, stack: contextlib.ExitStack) -> None:
    """Every stream is filled to its window for an application that takes nothing."""
    stalled = apps.Stalled()
    stack.enter_context(apps.tcp_app(pair.server.where, SINK_PORT + 1, stalled))
    stack.callback(stalled.go.set)
    sock = _secured(pair, stack)
    sock.settimeout(2)
    block = CONNECT_BLOCK.replace(b"9999", b"10000").replace(b"\x01\x0f", b"\x01\x10")
    opened = b"".join(frame(1, 4, stream, block) for stream in range(1, 41, 2))
    data = b"".join(frame(0, 0, stream, bytes(16000)) for stream in range(1, 41, 2)) * 60
    with contextlib.suppress(OSError):
        sock.sendall(HELLO + opened + data)


def key_updates_without_end(pair: Pair, stack: contextlib.ExitStack) -> None:
    """Records that carry nothing but a new key; each costs several hashes and a cipher."""
    with tempfile.NamedTemporaryFile(prefix="mm-test-keys-") as keylog:
        path = Path(keylog.name)
        context = pair.ca.leaf(CLIENT).context(ssl.PROTOCOL_TLS_CLIENT, keylog=path)
        secured = stack.enter_context(context.wrap_socket(_dial(pair)))
        secrets = tls13.parse_keylog(path.read_text())
    (secret,) = (
        value for (label, _), value in secrets.items() if label == "CLIENT_TRAFFIC_SECRET_0"
    )
    suite = {"TLS_AES_128_GCM_SHA256": 0x1301, "TLS_AES_256_GCM_SHA384": 0x1302}[
        secured.cipher()[0]
    ]
    raw = stack.enter_context(socket.socket(fileno=os.dup(secured.fileno())))
    raw.settimeout(WAITS["traffic"].seconds)
    with contextlib.suppress(ConnectionError):
        raw.sendall(tls13.key_updates(secret, suite, KEY_UPDATES))
        while raw.recv(65536):  # its own KeyUpdates; a connection that goes on makes it a timeout
            pass


ATTACKS: tuple[Attack, ...] = (
    half_open_tls,
    dribbled_hello,
    streams_that_never_send,
    windows_of_zero,
    answers_that_nobody_reads,
    applications_that_do_not_read,
    key_updates_without_end,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_is_bounded_and_others_are_served(victim: Pair, attack: Attack) -> None:
    pids = [victim.destination.process.pid]
    with (
        apps.tcp_app(victim.server.where, APP_PORT, apps.echo),
        apps.tcp_app(victim.server.where, SINK_PORT, apps.echo),
        contextlib.ExitStack() as stack,
    ):
        address = victim.server.addresses[0]
        assert apps.echo_through(victim.client.where, address, APP_PORT, 1000)
        before = pss_megabytes(pids)
        attack(victim, stack)
        for _ in range(20):
            assert apps.echo_through(victim.client.where, address, APP_PORT, 100_000)
        grown = pss_megabytes(pids) - before
    assert grown < BOUND_MEGABYTES, f"{grown:.0f} MB"
