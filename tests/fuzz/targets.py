"""What is fuzzed: every parser of bytes or text that somebody else writes.

A target takes bytes and lets nothing but the errors escape that the parser's contract names. Its
seeds are made by the product's own encoders, so that a fuzzer starts behind the first check.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from cryptography.hazmat.primitives.asymmetric import ec

from metalmesh.dns import message as dns
from metalmesh.errors import MetalmeshError, ProtocolError
from metalmesh.hbone import baggage, headers
from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    StringMatch,
)
from metalmesh.model.identity import parse_spiffe_id
from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from metalmesh.model.resources import parse_documents
from metalmesh.model.resources.probe import parse_probe
from metalmesh.model.workload import Workload
from metalmesh.pki.tokens import issue_node_token, verify_node_token
from metalmesh.proto import discovery_pb2
from metalmesh.xds.authorization import decode_authorization, encode_authorization
from metalmesh.xds.delta_server import DeltaStream
from metalmesh.xds.local import parse_local
from metalmesh.xds.node import decode_network_policy, decode_node, encode_network_policy
from metalmesh.xds.wds import decode_address, encode_address
from metalmesh.zds import messages as zds
from metalmesh.ztunnel import messages
from tests.support.h2_frames import Peer as H2Peer
from tests.support.h2_frames import RecordingMux, frame

_KEY = ec.derive_private_key(4711, ec.SECP256R1())
_NOTHING: dict[str, str] = {}


@dataclass(frozen=True)
class Target:
    """A parser, where to begin, and what it may raise."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    errors: tuple[type[Exception], ...] = (MetalmeshError,)


class _NoResources:
    """What a control plane serves that knows nothing."""

    def of_type(self, _: str) -> Mapping[str, object]:
        return {}

    def resolve(self, _type: str, _asked: str) -> frozenset[str]:
        return frozenset()


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape").encode(errors="replace").decode()


def _mux(*, client: bool) -> Callable[[bytes], object]:
    def run(data: bytes) -> None:
        mux = RecordingMux(client=client)
        mux.feed(H2Peer().hello(client=not client) + data)

    return run


def _delta(data: bytes) -> None:
    request = discovery_pb2.DeltaDiscoveryRequest()
    with contextlib.suppress(Exception):  # protobuf's own parser is not ours
        request.ParseFromString(data)
    stream = DeltaStream("node1")
    for _ in range(2):
        stream.receive(request, _NoResources())  # type: ignore[arg-type]
        stream.next_response(_NoResources())  # type: ignore[arg-type]


def _headers(data: bytes) -> None:
    decoder = headers.HeaderDecoder(16384)
    decoder.forbid_table()
    half = len(data) // 2
    for block in (data, data[:half], data[half:]):
        with contextlib.suppress(ProtocolError):
            headers.check_connect(decoder.decode(block))


def _baggage(data: bytes) -> None:
    labels = baggage.parse_baggage(_text(data))
    assert baggage.parse_baggage(baggage.encode_baggage(labels)).keys() <= labels.keys()


def _dns(data: bytes) -> None:
    query = dns.parse_query(data)
    reply = dns.encode_answer(query, dns.Answer(), authoritative=True, max_bytes=query.udp_bytes)
    assert reply[2] & 0x80


def _resources(data: bytes) -> None:
    for found in parse_documents(_text(data), "fuzz.yaml"):
        assert found is not None


def _connect(authority: str) -> bytes:
    return H2Peer().connect(1, authority)


_WORKLOAD = Workload(uid="c//Pod/a/b", name="b", namespace="a", addresses=(ip_address("10.0.0.1"),))
_POLICY = Authorization(
    name="p",
    namespace="a",
    scope=PolicyScope.NAMESPACE,
    action=Action.ALLOW,
    rules=(
        (
            (
                Match(
                    principals=(StringMatch(MatchKind.PREFIX, "cluster.local/"),),
                    source_ips=(ip_network("10.0.0.0/8"),),
                    destination_ports=(80,),
                ),
            ),
        ),
    ),
)
_NETWORK_POLICY = CompiledNetworkPolicy(
    namespace="a",
    name="p",
    selected=(SelectedWorkload("c//Pod/a/b", (ip_address("10.0.0.1"),)),),
    ingress=True,
    egress=False,
    ingress_rules=(
        PolicyRule(
            peers=(Peer(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),)),),
            ports=(PolicyPort(Protocol.TCP, 80, 90),),
        ),
    ),
)
_ENTRY = b"""apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a, namespace: b, annotations: {ambient.metalmesh.io/node: n}}
spec: {address: 10.0.0.1, ports: {http: 80}, locality: a/b/c}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: b}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80}]}]}
"""
_LOCAL = b"""workloads: [{uid: a, name: a, namespace: b, workloadIps: [10.0.0.1], services: {}}]
services: [{name: s, namespace: b, hostname: s.b, vips: [/10.1.0.1], ports: {80: 8080}}]
"""

TARGETS: Mapping[str, Target] = {
    "hbone_server": Target(
        _mux(client=False),
        (
            _connect("10.0.0.1:80") + H2Peer.data(1, b"x", end=True),
            frame(6, 0, 0, bytes(8)) + H2Peer.window(0, 5) + H2Peer.reset(1),
        ),
    ),
    "hbone_client": Target(_mux(client=True), (H2Peer.goaway(0), frame(4, 1, 0))),
    "headers": Target(
        _headers,
        (
            headers.connect_block(
                headers.connect_prefix("[fd00::1]:80", "service.name=a"),
                baggage.forwarded_for("10.0.0.1", 5, "a.b"),
                baggage.make_traceparent(bytes(24)),
            ),
            headers.response_block("200", "k8s.namespace.name=a"),
        ),
    ),
    "authority": Target(
        lambda data: headers.parse_authority(_text(data)), (b"10.0.0.1:80", b"[fd00::1]:80", b"a:1")
    ),
    "baggage": Target(_baggage, (b"k8s.cluster.name=a,service.name=b",)),
    "zds_hello": Target(zds.decode_hello, (zds.encode_hello(),)),
    "zds_request": Target(
        zds.decode_request, (zds.encode_request(zds.AddWorkload("u", "n", "ns", "sa")),)
    ),
    "zds_response": Target(zds.decode_response, (zds.encode_response(zds.Ack("no")),)),
    "dns": Target(
        _dns,
        (
            struct.pack("!6H", 7, 256, 1, 0, 0, 0)
            + dns.encode_name("a.b")
            + struct.pack("!HH", 1, 1),
        ),
    ),
    "wds": Target(lambda data: decode_address(data, "x"), (encode_address(_WORKLOAD),)),
    "authorization": Target(
        lambda data: decode_authorization(data, "x"), (encode_authorization(_POLICY),)
    ),
    "network_policy": Target(
        lambda data: decode_network_policy(data, "x"), (encode_network_policy(_NETWORK_POLICY),)
    ),
    "node": Target(lambda data: decode_node(data, "x"), (b"\x0a\x01a",)),
    "delta_request": Target(
        _delta,
        (
            discovery_pb2.DeltaDiscoveryRequest(
                type_url="t", resource_names_subscribe=["a"], initial_resource_versions={"b": "1"}
            ).SerializeToString(),
        ),
    ),
    "resources": Target(_resources, tuple(_ENTRY.split(b"---\n"))),
    "local_file": Target(lambda data: parse_local(_text(data), "f"), (_LOCAL,)),
    "probe": Target(
        lambda data: parse_probe(_text(data), "f", "o"), (b"httpGet: {port: 80, path: /a}",)
    ),
    "spiffe": Target(lambda data: parse_spiffe_id(_text(data)), (b"spiffe://td/ns/a/sa/b",)),
    "node_token": Target(
        lambda data: verify_node_token(_KEY.public_key(), _text(data), 1000),
        (issue_node_token(_KEY, "node1", "id", 900, 600).encode(),),
    ),
    "worker_message": Target(
        messages.decode,
        (
            messages.encode(messages.Resolve(request_id=1, uid="u", address="10.0.0.1", port=80)),
            messages.encode(messages.RouteReply(request_id=1, route=messages.Route(kind="tcp"))),
        ),
    ),
}


def run_target(name: str, data: bytes) -> None:
    """Run a target; only an error that its contract does not name escapes."""
    target = TARGETS[name]
    with contextlib.suppress(*target.errors):
        target.run(data)
