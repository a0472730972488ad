"""A ztunnel data worker with a test in the place of the main process.

``FakeMain`` starts the real worker, speaks the real IPC, and answers from tables the test fills.
``captured_pair`` gives two namespaces with the real redirection rules and a worker each.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metalmesh.constants import (
    MARK_FROM_PROXY,
    MARK_MASK,
    MARK_TRACKED,
    PORT_HBONE,
    PORT_INBOUND_PLAINTEXT,
    PORT_OUTBOUND,
    ROUTE_TABLE,
    RULE_PRIORITY,
)
from metalmesh.net.netns import open_netns
from metalmesh.net.sockets import SO_MARK, make_listener
from metalmesh.render.redirection import RedirectionConfig, render_redirection
from metalmesh.ztunnel import ipc
from metalmesh.ztunnel import messages as m
from tests.support.netns import Netns, netns_pair
from tests.support.peers import HboneClient
from tests.support.pki import CertificateAuthority, Credentials
from tests.support.waits import WAITS, Wait, wait_until

PING_SECONDS = 5.0
READY = Wait(10.0, "a Python process starts and imports; the machine may be busy")


@dataclass
class Member:
    """A workload of the test's mesh."""

    where: Netns
    name: str
    identity: str
    addresses: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        """Its WDS uid."""
        return f"test//{self.name}"

    def endpoint(self, port: int, **changes: Any) -> m.Endpoint:
        """A route to its port through HBONE."""
        address = self.addresses[0]
        values: dict[str, Any] = {
            "address": f"{address}:{PORT_HBONE}",
            "authority": f"{address}:{port}",
            "identities": (self.identity,),
            "workload": {**self.labels, "principal": self.identity},
        }
        return m.Endpoint(**{**values, **changes})


class FakeMain:
    """Plays the main process of one worker."""

    def __init__(self, *, log_level: str = "info", python: str = sys.executable) -> None:
        ours, theirs = ipc.socket_pair()
        self._log = tempfile.TemporaryFile(prefix="mm-test-worker-")  # noqa: SIM115 - close()
        self.process = subprocess.Popen(
            [python, "-m", "metalmesh.ztunnel.worker", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": "src"},
        )
        theirs.close()
        self._channel = ipc.Channel(ours)
        self._lock = threading.Lock()
        self._wake, self._waker = os.pipe()
        self.received: list[m.Message] = []
        #: what ``resolve`` is answered with; anything else passes through
        self.routes: dict[tuple[str, int], m.Route] = {}
        self.sources: dict[str, m.Labels] = {}
        self.certificates: dict[str, Credentials] = {}
        #: message types that get no answer
        self.silent: set[type] = set()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.send(m.Configure(log_level=log_level))
        self.wait_for(m.Ready)

    # --- talking
    def send(self, message: m.Message, fds: Sequence[int] = ()) -> None:
        """Tell the worker something."""
        with self._lock:
            self._channel.send(message, fds)

    def _serve(self) -> None:
        ping_at = time.monotonic()
        while not self._channel.closed:
            timeout = max(0.0, ping_at - time.monotonic())
            ready, _, _ = select.select([self._channel, self._wake], [], [], timeout)
            if self._wake in ready:
                return
            if time.monotonic() >= ping_at:  # a worker that hears nothing leaves
                ping_at = time.monotonic() + PING_SECONDS
                self.send(m.Ping(request_id=0))
            with self._lock:
                messages = [] if self._channel.closed else self._channel.receive()
            for message, _fds in messages:
                self.received.append(message)
                if type(message) not in self.silent:
                    self._answer(message)

    def _answer(self, message: m.Message) -> None:
        if isinstance(message, m.Resolve):
            key = (message.address, message.port)
            route = self.routes.get(key, m.Route(kind="passthrough"))
            self.send(m.RouteReply(request_id=message.request_id, route=route))
        elif isinstance(message, m.LookupSource):
            labels = self.sources.get(message.address)
            self.send(m.SourceReply(request_id=message.request_id, labels=labels))
        elif isinstance(message, m.NeedCertificate) and message.identity in self.certificates:
            self.give_certificate(message.identity, self.certificates[message.identity])

    def give_certificate(self, identity: str, credentials: Credentials) -> None:
        """Send a certificate."""
        self.send(
            m.Certificate(
                identity=identity,
                chain_pem=credentials.chain.decode(),
                key_pem=credentials.key.decode(),
                roots_pem=credentials.roots.decode(),
            )
        )

    def wait_for(self, kind: type, count: int = 1) -> Any:
        """The ``count``-th message of a type, once it has come."""

        def found() -> list[m.Message]:
            matching = [item for item in self.received if type(item) is kind]
            if self.process.poll() is not None and len(matching) < count:
                raise AssertionError(f"the worker died:\n{self.log()}")
            return matching[count - 1 : count]

        return wait_until(found, READY, what=f"{kind.__name__} of the worker")[0]

    # --- workloads
    def add(self, member: Member) -> None:
        """Have the worker serve a workload, on listeners made in its namespace."""
        ports = (PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT, PORT_HBONE)
        listeners = member.where.do(lambda: [make_listener(port) for port in ports])
        netns_fd = open_netns(member.where.path)
        acks = sum(type(item) is m.Ack for item in self.received)
        self.send(
            m.AddWorkload(
                uid=member.uid,
                name=member.name,
                namespace="test",
                service_account=member.name,
                identity=member.identity,
                addresses=member.addresses,
                labels=member.labels,
            ),
            [*(listener.fileno() for listener in listeners), netns_fd],
        )
        os.close(netns_fd)
        for listener in listeners:
            listener.close()
        ack = self.wait_for(m.Ack, acks + 1)
        assert ack.error == ""

    def policies(self, member: Member, *authorizations: dict[str, Any], **more: Any) -> None:
        """Set the workload's policies."""
        self.send(m.Policies(uid=member.uid, authorizations=authorizations, **more))

    # --- observing
    def log(self) -> str:
        """Everything the worker has logged."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode()

    def log_line(self, *parts: str) -> str:
        """The first log line that holds all parts, once it is there."""

        def found() -> str:
            lines = (line for line in self.log().splitlines() if all(p in line for p in parts))
            return next(lines, "")

        try:
            return wait_until(found, WAITS["log_line"], what=f"log line with {parts}")
        except AssertionError as error:
            raise AssertionError(f"{error}\nthe log:\n{self.log()}") from error

    def metrics(self) -> dict[tuple[str, str, str], float]:
        """Counters summed by (name, reporter, response_flags)."""
        number = sum(type(item) is m.MetricsReply for item in self.received) + 1
        self.send(m.Collect(request_id=number, what="metrics"))
        reply = self.wait_for(m.MetricsReply, number)
        sums: dict[tuple[str, str, str], float] = {}
        for name, labels, value in reply.series:
            key = (name, labels.get("reporter", ""), labels.get("response_flags", ""))
            sums[key] = sums.get(key, 0) + value
        return sums

    # --- ending
    def hang_up(self) -> None:
        """Die, as far as the worker can see."""
        os.write(self._waker, b"x")
        self._thread.join()
        self._channel.close()

    def close(self) -> None:
        """Stop the worker, drained or not."""
        self.hang_up()
        self.process.kill()
        self.process.wait()
        os.close(self._wake)
        os.close(self._waker)
        self._log.close()

    def __enter__(self) -> FakeMain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def capture_traffic(where: Netns, *, ipv6: bool = False) -> None:
    """Put the redirection of a workload in force: rules, mark route and mark rule."""
    text = render_redirection(RedirectionConfig(ipv6=ipv6))
    path = Path(f"/run/mm-test-{os.getpid()}-{where.path.name}.nft")
    path.write_text(text)
    try:
        where.run("nft", "-f", str(path))
    finally:
        path.unlink()
    mark = f"{MARK_TRACKED:#x}/{MARK_MASK:#x}"
    rule = ("fwmark", mark, "table", str(ROUTE_TABLE), "pref", str(RULE_PRIORITY))
    for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0"))[: 2 if ipv6 else 1]:
        route = ("local", everything, "dev", "lo", "table", str(ROUTE_TABLE))
        where.run("ip", family, "route", "add", *route)
        where.run("ip", family, "rule", "add", *rule)


@dataclass
class Pair:
    """Two captured workloads, each with a worker of its own, as on two nodes."""

    client: Member
    server: Member
    source: FakeMain
    destination: FakeMain
    ca: CertificateAuthority

    def route(self, port: int, **changes: Any) -> None:
        """Tunnel connections of the client to the server's port."""
        endpoint = self.server.endpoint(port, **changes)
        route = m.Route(kind="hbone", endpoints=(endpoint,))
        self.source.routes[self.server.addresses[0], port] = route


@contextlib.contextmanager
def captured_pair(*, log_level: str = "info", python: str = sys.executable) -> Iterator[Pair]:
    """A client and a server workload with redirection, certificates and open policies."""
    ca = CertificateAuthority()
    with contextlib.ExitStack() as stack:
        one, other = stack.enter_context(netns_pair())
        members = [
            Member(
                where,
                name,
                f"spiffe://cluster.local/ns/test/sa/{name}",
                (where.address,),
                {"name": name, "workload": name, "namespace": "test", "cluster": "lab"},
            )
            for where, name in ((one, "client"), (other, "server"))
        ]
        mains = []
        for member in members:
            capture_traffic(member.where)
            main = stack.enter_context(FakeMain(log_level=log_level, python=python))
            main.certificates[member.identity] = ca.leaf(member.identity)
            main.sources.update({item.addresses[0]: item.labels for item in members})
            main.add(member)
            main.policies(member)
            mains.append(main)
        yield Pair(members[0], members[1], mains[0], mains[1], ca)


def dial_uncaptured(where: Netns, address: str, port: int) -> socket.socket:
    """A connection with the proxy's mark: what a rogue proxy in the workload could make."""

    def dial() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK_FROM_PROXY)
        sock.settimeout(WAITS["traffic"].seconds)
        sock.connect((address, port))
        return sock

    return where.do(dial)


def hbone_client(pair: Pair, credentials: Credentials | None = None, **tls: Any) -> HboneClient:
    """An independent HBONE client in the client's namespace, with its identity by default."""
    credentials = credentials or pair.ca.leaf(pair.client.identity)
    plain = dial_uncaptured(pair.client.where, pair.server.addresses[0], PORT_HBONE)
    return HboneClient(plain, credentials.context(ssl.PROTOCOL_TLS_CLIENT, **tls))
