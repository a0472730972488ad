"""Workloads and services on the wire: round trips, and the refusals of istio-facts 3.3."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import ProtocolError
from metalmesh.model.service import LoadBalancing, LoadBalancingMode, Scope, Service
from metalmesh.model.workload import (
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    NetworkCidr,
    TunnelProtocol,
    Workload,
)
from metalmesh.proto import workload_pb2 as pb
from metalmesh.xds.wds import (
    address_aliases,
    address_name,
    decode_address,
    decode_service,
    decode_workload,
    encode_address,
    encode_service,
    encode_workload,
)

IP = ipaddress.ip_address

FULL_WORKLOAD = Workload(
    uid="c/networking.istio.io/WorkloadEntry/demo/echo",
    name="echo",
    namespace="demo",
    addresses=(IP("10.244.2.11"), IP("fd00:10:244:2::b")),
    hostname="echo.example",
    network="lan",
    protocol=TunnelProtocol.HBONE,
    trust_domain="mesh.test",
    service_account="echo-sa",
    node="node2",
    workload_name="echo",
    workload_type="job",
    canonical_name="echo",
    canonical_revision="v2",
    cluster_id="c",
    locality=Locality("eu", "eu-1", "rack1"),
    healthy=False,
    host_network=True,
    native_tunnel=True,
    capacity=7,
    waypoint=GatewayAddress(NamespacedHostname("demo", "wp.demo.svc.cluster.local"), 15008),
    services={"demo/echo.demo.svc.cluster.local": {80: 8080, 443: 8443}},
    authorization_policies=("demo/a", "demo/b"),
)
FULL_SERVICE = Service(
    name="echo",
    namespace="demo",
    hostname="echo.demo.svc.cluster.local",
    vips=(NetworkAddress("", IP("10.96.0.10")), NetworkAddress("lan", IP("fd00::10"))),
    cidr_vips=(NetworkCidr("", ipaddress.ip_network("192.0.2.0/24")),),
    ports={80: 8080, 81: 0},
    subject_alt_names=("spiffe://mesh.test/ns/demo/sa/other",),
    waypoint=GatewayAddress(NetworkAddress("", IP("10.244.1.9")), 15008),
    load_balancing=LoadBalancing(
        LoadBalancingMode.FAILOVER, (Scope.NETWORK, Scope.REGION, Scope.ZONE), allow_unhealthy=True
    ),
    ip_families="Dual",
    canonical=True,
    private=True,
)


@pytest.mark.parametrize("item", [FULL_WORKLOAD, FULL_SERVICE], ids=["workload", "service"])
def test_address_with_every_field_survives_the_wire(item: Workload | Service) -> None:
    assert decode_address(encode_address(item), address_name(item)) == item


def test_minimal_items_survive_the_wire() -> None:
    workload = Workload(uid="u", name="w", namespace="n")
    service = Service(name="s", namespace="n", hostname="s.n.svc.cluster.local")
    assert decode_workload(encode_workload(workload)) == workload
    assert decode_service(encode_service(service)) == service


def test_empty_fields_get_istios_defaults() -> None:
    """Istio-facts 3.3: empty trust domain, service account and cluster have meanings."""
    workload = decode_workload(pb.Workload(uid="u"))
    assert workload.trust_domain == "cluster.local"
    assert workload.service_account == "default"
    assert workload.cluster_id == "Kubernetes"
    assert workload.capacity == 1


def test_capacity_zero_is_kept_apart_from_absent() -> None:
    workload = Workload(uid="u", name="w", namespace="n", capacity=0)
    assert decode_workload(encode_workload(workload)).capacity == 0


def test_host_length_is_a_host_and_any_other_length_a_range() -> None:
    """Istio-facts 3.3 NetworkAddress: absent, 32 or 128 is a host."""
    packed = IP("10.0.0.0").packed
    message = pb.Service(
        hostname="h",
        addresses=[
            pb.NetworkAddress(address=packed),
            pb.NetworkAddress(address=packed, length=32),
            pb.NetworkAddress(address=packed, length=0),
            pb.NetworkAddress(address=IP("fd00::").packed, length=128),
        ],
    )
    service = decode_service(message)
    assert [str(vip.address) for vip in service.vips] == ["10.0.0.0", "10.0.0.0", "fd00::"]
    assert [str(item.cidr) for item in service.cidr_vips] == ["0.0.0.0/0"]


def test_unknown_visibility_is_public() -> None:
    assert decode_service(pb.Service(hostname="h", visibility=9)).private is False  # type: ignore[arg-type]


REFUSED_WORKLOADS = {
    "address of 3 bytes": (pb.Workload(addresses=[b"abc"]), r"addresses\[0\].*4 or 16 bytes"),
    "empty address": (pb.Workload(addresses=[b""]), r"addresses\[0\].*got 0"),
    "legacy mTLS": (pb.Workload(tunnel_protocol=pb.LEGACY_ISTIO_MTLS), "tunnel_protocol"),
    "unknown protocol": (pb.Workload(tunnel_protocol=77), "tunnel_protocol: unknown value 77"),  # type: ignore[arg-type]
    "unknown status": (pb.Workload(status=5), "status: unknown value 5"),  # type: ignore[arg-type]
    "unknown network mode": (pb.Workload(network_mode=5), "network_mode"),  # type: ignore[arg-type]
    "gateway without destination": (
        pb.Workload(waypoint=pb.GatewayAddress(hbone_mtls_port=15008)),
        "waypoint.destination",
    ),
    "service key without namespace": (
        pb.Workload(services={"echo": pb.PortList()}),
        r"services\[echo\]: a key is namespace/hostname",
    ),
    "service port of 17 bits": (
        pb.Workload(services={"n/h": pb.PortList(ports=[pb.Port(service_port=70000)])}),
        "70000",
    ),
}


@pytest.mark.parametrize("case", REFUSED_WORKLOADS.values(), ids=REFUSED_WORKLOADS)
def test_malformed_workload_is_refused_naming_uid_and_field(
    case: tuple[pb.Workload, str],
) -> None:
    message, expected = case
    message.uid = "the/uid"
    with pytest.raises(ProtocolError, match=f"^the/uid: .*{expected}"):
        decode_workload(message)


def test_workload_without_uid_is_refused() -> None:
    with pytest.raises(ProtocolError, match="uid: must not be empty"):
        decode_address(pb.Address(workload=pb.Workload(name="x")).SerializeToString(), "n")


REFUSED_SERVICES = {
    "unspecified preference": (
        pb.LoadBalancing(routing_preference=[pb.LoadBalancing.UNSPECIFIED_SCOPE]),
        "routing_preference: unknown value 0",
    ),
    "unknown mode": (pb.LoadBalancing(mode=9), "load_balancing.mode"),  # type: ignore[arg-type]
    "unknown health policy": (pb.LoadBalancing(health_policy=9), "health_policy"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED_SERVICES.values(), ids=REFUSED_SERVICES)
def test_malformed_load_balancing_is_refused(case: tuple[pb.LoadBalancing, str]) -> None:
    message = pb.Service(namespace="n", hostname="h", load_balancing=case[0])
    with pytest.raises(ProtocolError, match=f"^n/h: .*{case[1]}"):
        decode_service(message)


def test_prefix_longer_than_the_address_is_refused() -> None:
    address = pb.NetworkAddress(address=IP("10.0.0.1").packed, length=33)
    with pytest.raises(ProtocolError, match=r"addresses\[0\]: a prefix length is at most 32"):
        decode_service(pb.Service(hostname="h", addresses=[address]))


def test_neither_workload_nor_service_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"^x: type: neither"):
        decode_address(b"", "x")


@given(st.binary(max_size=200))
def test_only_protocol_errors_escape_the_decoder(data: bytes) -> None:
    message = "name: "
    try:
        decode_address(data, "name")
    except ProtocolError as error:
        message = str(error)
    assert message.startswith("name: ")


def test_bytes_do_not_depend_on_the_order_of_a_mapping() -> None:
    """Versions are content hashes: equal content must encode to equal bytes."""
    ports = [("n/a", {1: 2}), ("n/b", {3: 4}), ("n/c", {5: 6})]
    one = Workload(uid="u", name="w", namespace="n", services=dict(ports))
    two = Workload(uid="u", name="w", namespace="n", services=dict(reversed(ports)))
    assert encode_address(one) == encode_address(two)


def test_aliases_are_the_addresses_except_on_the_host_network() -> None:
    """Istio-facts 3.2 and 3.3: HOST_NETWORK workloads are not indexed by address."""
    workload = Workload(uid="u", name="w", namespace="n", addresses=(IP("10.0.0.1"),))
    assert address_aliases(workload) == ("/10.0.0.1",)
    assert address_aliases(FULL_WORKLOAD) == ()
    assert address_aliases(FULL_SERVICE) == ("/10.96.0.10", "lan/fd00::10")
