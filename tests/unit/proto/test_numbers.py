"""Field numbers are the contract with Istio's and Envoy's own components."""

from __future__ import annotations

import pytest
from envoy.service.discovery.v3 import discovery_pb2 as envoy
from google.protobuf import descriptor

from metalmesh.proto import (
    authorization_pb2,
    ca_pb2,
    discovery_pb2,
    workload_pb2,
    zds_pb2,
)

_WORKLOAD = (
    "name 1, namespace 2, addresses 3, network 4, tunnel_protocol 5, trust_domain 6, "
    "service_account 7, waypoint 8, node 9, canonical_name 10, canonical_revision 11, "
    "workload_type 12, workload_name 13, native_tunnel 14, authorization_policies 16, status 17, "
    "cluster_id 18, network_gateway 19, uid 20, hostname 21, services 22, application_tunnel 23, "
    "locality 24, network_mode 25, extensions 26, capacity 27"
)
_SERVICE = (
    "name 1, namespace 2, hostname 3, addresses 4, ports 5, subject_alt_names 6, waypoint 7, "
    "load_balancing 8, ip_families 9, extensions 10, canonical 11, ingress_use_waypoint 12, "
    "weighted_waypoints 13, visibility 14"
)
_MATCH = (
    "namespaces 1, not_namespaces 2, principals 3, not_principals 4, source_ips 5, "
    "not_source_ips 6, destination_ips 7, not_destination_ips 8, destination_ports 9, "
    "not_destination_ports 10, service_accounts 11, not_service_accounts 12, extensions 13"
)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (workload_pb2.Address, "workload 1, service 2"),
        (workload_pb2.Workload, _WORKLOAD),
        (workload_pb2.Service, _SERVICE),
        (workload_pb2.Port, "service_port 1, target_port 2, app_protocol 3"),
        (workload_pb2.GatewayAddress, "hostname 1, address 2, hbone_mtls_port 3"),
        (workload_pb2.NetworkAddress, "network 1, address 2, length 3"),
        (workload_pb2.LoadBalancing, "routing_preference 1, mode 2, health_policy 3"),
        (
            authorization_pb2.Authorization,
            "name 1, namespace 2, scope 3, action 4, rules 5, dry_run 6, extensions 7",
        ),
        (authorization_pb2.Rule, "clauses 1"),
        (authorization_pb2.Clause, "matches 2"),
        (authorization_pb2.Match, _MATCH),
        (authorization_pb2.StringMatch, "exact 1, prefix 2, suffix 3, presence 4"),
        (zds_pb2.WorkloadRequest, "add 1, del 2, snapshot_sent 3, keep 5"),
        (zds_pb2.AddWorkload, "uid 1, workload_info 2"),
        (zds_pb2.DelWorkload, "uid 2"),
        (zds_pb2.WorkloadInfo, "name 1, namespace 2, service_account 3"),
        (ca_pb2.IstioCertificateRequest, "csr 1, validity_duration 3, metadata 4"),
        (ca_pb2.IstioCertificateResponse, "cert_chain 1"),
    ],
    ids=lambda value: getattr(getattr(value, "DESCRIPTOR", None), "name", ""),
)
def test_fields_have_istios_numbers(message: type, fields: str) -> None:
    """istio-facts 3.3, 3.4, 4 and 9.1: a wrong number is read as another field, or not at all."""
    assert _numbers(message.DESCRIPTOR) == fields


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (discovery_pb2.DeltaDiscoveryRequest, envoy.DeltaDiscoveryRequest),
        (discovery_pb2.DeltaDiscoveryResponse, envoy.DeltaDiscoveryResponse),
        (discovery_pb2.Resource, envoy.Resource),
    ],
    ids=lambda message: message.DESCRIPTOR.full_name,
)
def test_delta_discovery_is_a_part_of_envoys(ours: type, theirs: type) -> None:
    """Every field of ours is a field of Envoy's: same name, number, type and cardinality."""
    envoys = theirs.DESCRIPTOR.fields_by_name
    for field in ours.DESCRIPTOR.fields:
        same = envoys[field.name]
        assert (field.number, field.type, field.is_repeated) == (
            same.number,
            same.type,
            same.is_repeated,
        ), field.name


def test_envoy_reads_what_we_write() -> None:
    """The bytes themselves, through Envoy's own classes and back."""
    ours = discovery_pb2.DeltaDiscoveryRequest(
        type_url="t",
        resource_names_subscribe=["a"],
        resource_names_unsubscribe=["b"],
        initial_resource_versions={"c": "1"},
        response_nonce="n",
    )
    ours.node.id = "ztunnel~10.0.0.1~z.istio-system~cluster.local"
    ours.node.metadata["NODE_NAME"] = "node1"
    ours.error_detail.message = "c: wrong"
    read = envoy.DeltaDiscoveryRequest.FromString(ours.SerializeToString())
    assert read.node.id == ours.node.id
    assert read.node.metadata["NODE_NAME"] == "node1"
    assert read.error_detail.message == "c: wrong"
    assert dict(read.initial_resource_versions) == {"c": "1"}
    again = discovery_pb2.DeltaDiscoveryRequest.FromString(read.SerializeToString())
    assert again == ours


def _numbers(message: descriptor.Descriptor) -> str:
    fields = sorted(message.fields, key=lambda field: field.number)
    return ", ".join(f"{field.name} {field.number}" for field in fields)
