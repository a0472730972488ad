"""Captured DNS: what the ztunnel answers itself, and how it asks others (istio-facts 7)."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from metalmesh.model.service import Service
from metalmesh.model.workload import NetworkAddress
from tests.support.netns import Netns
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import NAMESPACE, Guest, Stage

pytestmark = pytest.mark.root

#: an address nobody has: only a captured query is ever answered
NOWHERE = "203.0.113.53"
GATEWAY = "169.254.1.1"
DOMAIN = "svc.cluster.local"
SECONDS = 15.0
Respond = Callable[[dns.message.Message], dns.message.Message | None]


class Nameserver:
    """An upstream on the node: a table of names, over UDP and TCP."""

    def __init__(self, where: Netns, respond: Respond) -> None:
        self.seen: list[tuple[str, dns.message.Message, int]] = []
        self._respond = respond
        self._udp = where.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind((GATEWAY, 53))
        self._tcp = where.listen(53, address=GATEWAY)
        self._threads = [threading.Thread(target=run) for run in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while data_peer := self._udp.recvfrom(4096):
                data, peer = data_peer
                if not data:
                    return
                reply = self._answer("udp", data, peer[1])
                if reply is not None:
                    self._udp.sendto(reply, peer)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self._tcp.accept()
                with connection:
                    size = int.from_bytes(connection.recv(2), "big")
                    reply = self._answer("tcp", connection.recv(size), peer[1])
                    if reply is not None:
                        connection.sendall(len(reply).to_bytes(2, "big") + reply)

    def _answer(self, protocol: str, data: bytes, port: int) -> bytes | None:
        query = dns.message.from_wire(data)
        self.seen.append((protocol, query, port))
        reply = self._respond(query)
        return None if reply is None else reply.to_wire()

    def close(self) -> None:
        """End both servers."""
        self._tcp.shutdown(socket.SHUT_RDWR)
        self._tcp.close()
        self._udp.close()


def public(query: dns.message.Message) -> dns.message.Message:
    """``www.example.com`` exists, nothing else does."""
    reply = dns.message.make_response(query, recursion_available=True)
    name = query.question[0].name.to_text().lower()
    if name == "www.example.com." and query.question[0].rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 77, "IN", "A", "192.0.2.1"))
    elif name != "www.example.com.":
        reply.set_rcode(dns.rcode.NXDOMAIN)
    return reply


@contextlib.contextmanager
def nameserver(stage: Stage, respond: Respond = public) -> Iterator[Nameserver]:
    server = Nameserver(stage.node, respond)
    try:
        yield server
    finally:
        # a closed socket does not wake who waits in recvfrom: an empty datagram does
        with stage.node.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as waker:
            waker.sendto(b"", (GATEWAY, 53))
        server.close()
        for thread in server._threads:
            thread.join(SECONDS)


def ask(
    guest: Guest, name: str, kind: str = "A", *, tcp: bool = False, edns: int | None = None
) -> dns.message.Message:
    """One query from inside a workload to an address nobody has."""
    query = dns.message.make_query(name, kind)
    if edns is not None:
        query.use_edns(0, payload=edns)
    send = dns.query.tcp if tcp else dns.query.udp
    return guest.netns.do(lambda: send(query, NOWHERE, timeout=SECONDS))


def texts(reply: dns.message.Message) -> list[str]:
    return sorted(record.to_text() for rrset in reply.answer for record in rrset)


def service(hostname: str, *vips: str, namespace: str = NAMESPACE, **fields) -> Service:
    return Service(
        name=hostname.split(".")[0],
        namespace=namespace,
        hostname=hostname,
        vips=tuple(NetworkAddress("", ip_address(vip)) for vip in vips),
        **fields,
    )


ECHO = service(f"echo.{NAMESPACE}.{DOMAIN}", "10.96.0.10", "fd10::10", port_names={"http": 80})
DB = service(f"db.{NAMESPACE}.{DOMAIN}", port_names={"sql": 5432})
API = service("api.example.org", "10.96.0.11")
WILD = service("*.wild.example.org", "10.96.0.12")
PRIVATE = service("inner.other." + DOMAIN, "10.96.0.13", namespace="other", private=True)


def settle(stage: Stage, guest: Guest, name: str = ECHO.hostname) -> None:
    wait_until(lambda: texts(ask(guest, name)) != [], WAITS["service"], what="services are known")


@pytest.fixture
def client(stage: Stage) -> Guest:
    """A workload whose DNS is captured, and a mesh of services."""
    guest = stage.add_guest(dns_capture=True, services={f"{NAMESPACE}/{DB.hostname}": {5432: 6000}})
    stage.settings["dns_upstreams"] = [GATEWAY]
    stage.plane.set(guest.workload, ECHO, DB, API, WILD, PRIVATE)
    stage.plane.start()
    stage.start()
    stage.snapshot(guest)
    stage.wait_ready()
    settle(stage, guest)
    return guest


def test_services_are_answered_over_udp_and_tcp(client: Guest, stage: Stage) -> None:
    for tcp in (False, True):
        reply = ask(client, ECHO.hostname, tcp=tcp)
        assert texts(reply) == ["10.96.0.10"]
        assert reply.answer[0].ttl == 30
        assert reply.flags & dns.flags.AA
        assert reply.flags & dns.flags.RA
        assert texts(ask(client, ECHO.hostname, "AAAA", tcp=tcp)) == ["fd10::10"]
    assert texts(ask(client, "echo")) == ["10.96.0.10"]
    assert texts(ask(client, "any.wild.example.org")) == ["10.96.0.12"]
    empty = ask(client, API.hostname, "AAAA")
    assert (empty.rcode(), texts(empty)) == (dns.rcode.NOERROR, [])
    metrics = stage.metrics()
    labels = 'request_query_type="A",request_protocol="{}",source_canonical_service="w1"'
    for protocol in ("udp", "tcp"):
        assert f"istio_dns_requests_total{{{labels.format(protocol)}" in metrics


def test_stripped_search_domain_is_an_alias(client: Guest) -> None:
    reply = ask(client, f"{API.hostname}.{NAMESPACE}.{DOMAIN}")
    assert texts(reply) == ["10.96.0.11", f"{API.hostname}."]
    assert reply.answer[0].rdtype == dns.rdatatype.CNAME


def test_headless_service_has_endpoints_their_names_and_their_locations(client: Guest) -> None:
    assert texts(ask(client, "db")) == [client.netns.address]
    assert texts(ask(client, f"w1.{DB.hostname}")) == [client.netns.address]
    assert texts(ask(client, f"_sql._tcp.{DB.hostname}", "SRV")) == [f"0 0 6000 w1.{DB.hostname}."]
    assert texts(ask(client, "_http._tcp.echo", "SRV")) == [f"0 0 80 {ECHO.hostname}."]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_other_names_are_asked_for_from_the_workloads_own_namespace(
    client: Guest, stage: Stage, tcp: bool
) -> None:
    """Answers and refusals come back as they were given, under the client's own id."""
    with nameserver(stage) as upstream:
        reply = ask(client, "www.example.com", tcp=tcp)
        assert texts(reply) == ["192.0.2.1"]
        assert reply.answer[0].ttl == 77
        assert not reply.flags & dns.flags.AA
        assert ask(client, "none.example.com", tcp=tcp).rcode() == dns.rcode.NXDOMAIN
        # what the mesh does not know may be known elsewhere, also under the cluster's domain
        assert ask(client, "gone.shop.svc.cluster.local", tcp=tcp).rcode() == dns.rcode.NXDOMAIN
        # a private service of another namespace is nobody's business
        assert ask(client, PRIVATE.hostname, tcp=tcp).rcode() == dns.rcode.NXDOMAIN
        assert ask(client, ECHO.hostname, "TXT", tcp=tcp).rcode() == dns.rcode.NXDOMAIN
    assert {protocol for protocol, _, _ in upstream.seen} == {"tcp" if tcp else "udp"}
    assert len({query.id for _, query, _ in upstream.seen}) > 1
    assert len({port for _, _, port in upstream.seen}) > 1, "every query from a port of its own"
    assert "istio_dns_upstream_requests_total{" in stage.metrics()


def test_silent_upstream_is_a_server_failure_and_is_counted(client: Guest, stage: Stage) -> None:
    with nameserver(stage, lambda query: None):
        assert ask(client, "www.example.com").rcode() == dns.rcode.SERVFAIL
    wait_until(lambda: "istio_dns_upstream_failures_total{" in stage.metrics(), WAITS["metric"])


def test_long_answers_are_truncated_over_udp_and_whole_over_tcp(
    client: Guest, stage: Stage
) -> None:
    vips = [f"10.97.{number // 200}.{number % 200}" for number in range(60)]
    many = service(f"many.{NAMESPACE}.{DOMAIN}", *vips)
    stage.plane.set(many)
    wait_until(lambda: len(texts(ask(client, many.hostname, tcp=True))) == 60, WAITS["service"])
    cut = ask(client, many.hostname)
    assert cut.flags & dns.flags.TC
    assert texts(cut) == []
    # with EDNS more fits, and the option is echoed
    whole = ask(client, many.hostname, edns=4096)
    assert whole.edns == 0
    assert len(texts(whole)) == 60


def test_workload_nobody_told_us_of_gets_a_server_failure(stage: Stage) -> None:
    guest = stage.add_guest(dns_capture=True)
    stage.settings["dns_upstreams"] = [GATEWAY]
    stage.plane.set(ECHO)
    stage.plane.start()
    stage.start()
    stage.snapshot(guest)
    assert ask(guest, ECHO.hostname).rcode() == dns.rcode.SERVFAIL
    stage.plane.set(guest.workload)
    settle(stage, guest)


def test_queries_wait_for_a_killed_main_process(client: Guest, stage: Stage) -> None:
    """The sockets are in systemd's store: a query that comes in between is answered after."""
    saved = stage.directory / "xds.pb"
    wait_until(
        lambda: saved.exists() and ECHO.hostname.encode() in saved.read_bytes(),
        WAITS["service"],
        what="state saved",
    )
    assert stage.process is not None
    stage.process.send_signal(signal.SIGKILL)
    stage.process.wait()
    found: list[list[str]] = []
    waiting = threading.Thread(target=lambda: found.append(texts(ask(client, ECHO.hostname))))
    waiting.start()
    stage.start()
    waiting.join(SECONDS)
    assert found == [["10.96.0.10"]]


def test_reload_answers_all_the_time(client: Guest, stage: Stage) -> None:
    stopped = threading.Event()
    answers: list[list[str]] = []

    def keep_asking() -> None:
        while not stopped.is_set():
            answers.append(texts(ask(client, ECHO.hostname)))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        assert stage.reload() == 0
        before = len(answers)
        wait_until(lambda: len(answers) > before + 10, WAITS["traffic"])
    finally:
        stopped.set()
        asking.join(SECONDS)
    assert all(answer == ["10.96.0.10"] for answer in answers)


def test_without_capture_queries_go_where_they_were_sent(client: Guest, stage: Stage) -> None:
    """The negative twin: the same query, from a workload that opted out, reaches the network."""
    other = stage.add_guest()
    stage.introduce(other)
    query = dns.message.make_query(ECHO.hostname, "A")
    with nameserver(stage) as upstream:
        reply = other.netns.do(lambda: dns.query.udp(query, GATEWAY, timeout=SECONDS))
        assert reply.rcode() == dns.rcode.NXDOMAIN
        assert upstream.seen
        # while the captured one's is answered by the proxy, whoever it asks
        captured = client.netns.do(lambda: dns.query.udp(query, GATEWAY, timeout=SECONDS))
    assert texts(captured) == ["10.96.0.10"]
    assert len(upstream.seen) == 1
