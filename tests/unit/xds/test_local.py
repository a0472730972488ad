"""ztunnel's own format of workloads, services and policies (istio-facts 8.6)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
import yaml

from metalmesh.errors import ConfigError
from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
)
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
from metalmesh.routing.state import MeshState
from metalmesh.xds.authorization import decode_authorization, encode_authorization
from metalmesh.xds.local import LocalMesh, parse_local
from metalmesh.xds.wds import address_name, decode_address, encode_address

KEY = "shop/cart.shop.svc.cluster.local"
CART = Workload(
    uid="site-a//Pod/shop/cart-1",
    name="cart-1",
    namespace="shop",
    addresses=(ip_address("10.1.0.9"), ip_address("fd00::9")),
    protocol=TunnelProtocol.HBONE,
    service_account="cart",
    node="node-b",
    cluster_id="site-a",
    workload_name="cart",
    canonical_name="cart",
    canonical_revision="v1",
    locality=Locality("r1", "z1"),
    capacity=3,
    authorization_policies=("shop/only-web",),
    waypoint=GatewayAddress(NamespacedHostname("shop", "wp.shop.svc.cluster.local"), 15008),
    services={KEY: {80: 8080}},
)
OUTSIDE = Workload(
    uid="x", name="db", namespace="ext", hostname="db.example.com", healthy=False,
    host_network=True, native_tunnel=True, network="net2", workload_type="job",
)  # fmt: skip
SERVICE = Service(
    name="cart",
    namespace="shop",
    hostname="cart.shop.svc.cluster.local",
    vips=(NetworkAddress("", ip_address("10.96.0.10")),),
    cidr_vips=(NetworkCidr("", ip_network("10.200.0.0/16")),),
    ports={80: 8080, 81: 0},
    subject_alt_names=("spiffe://cluster.local/ns/shop/sa/cart",),
    waypoint=GatewayAddress(NetworkAddress("net2", ip_address("10.96.0.20")), 15009),
    load_balancing=LoadBalancing(
        LoadBalancingMode.FAILOVER, (Scope.NETWORK, Scope.REGION), allow_unhealthy=True
    ),
    ip_families="Dual",
    canonical=True,
    private=True,
)
POLICY = Authorization(
    name="only-web",
    namespace="shop",
    scope=PolicyScope.WORKLOAD_SELECTOR,
    action=Action.ALLOW,
    rules=(
        ((Match(principals=(StringMatch(MatchKind.EXACT, "cluster.local/ns/shop/sa/web"),),
                destination_ports=(8080,)),),),
        ((Match(source_ips=(ip_network("10.1.0.0/16"),),
                not_namespaces=(StringMatch(MatchKind.PREFIX, "test-"),
                                StringMatch(MatchKind.PRESENCE))),),
         (Match(service_accounts=(ServiceAccountMatch("shop", "web"),)),)),
    ),
)  # fmt: skip
MESH = LocalMesh((CART, OUTSIDE), (SERVICE,), (POLICY,))


def state_of(*items: Workload | Service, policies: tuple[Authorization, ...]) -> dict[str, object]:
    state = MeshState()
    state.apply_addresses({address_name(item): item for item in items})
    state.apply_policies({policy.key: policy for policy in policies})
    return vars(state)


def test_a_file_and_xds_give_the_same_state() -> None:
    """Differential: one mesh, through WDS and through the file."""
    items = (*MESH.workloads, *MESH.services)
    served = [decode_address(encode_address(item), address_name(item)) for item in items]
    policies = [decode_authorization(encode_authorization(POLICY), POLICY.key)]
    local = parse_local(yaml.safe_dump(MESH.to_dict()), "mesh.yaml")
    from_file = state_of(*local.workloads, *local.services, policies=local.policies)
    assert from_file == state_of(*served, policies=tuple(policies))


#: written by hand, with everything that ztunnel has a key for
SAMPLE = """
workloads:
- uid: wp-1
  name: wp-1
  namespace: shop
  trustDomain: cluster.local
  workloadIps: ["10.1.0.20"]
  protocol: HBONE
  applicationTunnel: {protocol: PROXY, port: 15088}
  networkGateway: {destination: "net2/203.0.113.5", hboneMtlsPort: 15008}
  services: {"shop/wp.shop.svc.cluster.local": {15008: 15008}}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["/10.96.0.10", "net2/fd00::1"]
  ports: {80: 8080}
  weightedWaypoints:
  - {destination: {destination: "shop/wp.shop.svc.cluster.local", hboneMtlsPort: 15008}, weight: 90}
  loadBalancer: {routingPreferences: [Network], mode: Failover, healthPolicy: OnlyHealthy}
policies:
- name: only-web
  namespace: shop
  scope: Namespace
  action: Allow
  dryRun: false
  rules:
  - - - principals: [{Exact: cluster.local/ns/shop/sa/web}]
"""


def test_ztunnels_own_file_is_understood() -> None:
    local = parse_local(SAMPLE, "mesh.yaml")
    (waypoint,) = local.workloads
    assert waypoint.services == {"shop/wp.shop.svc.cluster.local": {15008: 15008}}
    assert waypoint.workload_type == "deployment"
    assert [str(vip) for vip in local.services[0].vips] == ["/10.96.0.10", "net2/fd00::1"]
    assert local.policies[0].key == "shop/only-web"
    assert parse_local("", "empty.yaml") == LocalMesh()


def test_the_trust_domain_is_not_filled_in() -> None:
    """As ztunnel's: unlike over xDS, an absent one stays empty."""
    text = "workloads: [{uid: a, namespace: b, workloadIps: [], services: {}}]"
    assert parse_local(text, "f").workloads[0].trust_domain == ""
    assert replace(parse_local(text, "f").workloads[0], protocol=TunnelProtocol.HBONE).node == ""


WORKLOAD = "workloads: [{uid: a, namespace: b, workloadIps: [], services: {}%s}]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("workload: []", "workload: unknown key"),
        ("[]", "file: must be a mapping"),
        ("workloads: [", "not YAML"),
        ("workloads: {}", "workloads: must be a list"),
        ("workloads: [x]", "workloads[0]: must be a mapping"),
        ("workloads: [{uid: a}]", "workloads[0].services: is missing"),
        (WORKLOAD % ", nam: x", "workloads[0].nam: unknown key"),
        (WORKLOAD % ", capacity: many", "workloads[0].capacity: must be a whole number"),
        (WORKLOAD % ", nativeTunnel: 1", "workloads[0].nativeTunnel: must be true or false"),
        (WORKLOAD % ", protocol: UDP", "workloads[0].protocol: must be one of TCP, HBONE"),
        (WORKLOAD % ", locality: {continent: x}", "workloads[0].locality.continent: unknown key"),
        (WORKLOAD % ", waypoint: {destination: x}", "destination 'x' must be NETWORK/IP or"),
        (WORKLOAD.replace("[]", "[1.2.3]") % "", "workloads[0].workloadIps[0]: '1.2.3'"),
        (WORKLOAD.replace("{}", "{a: {}}") % "", "services: 'a' must be NAMESPACE/HOSTNAME"),
        (WORKLOAD.replace("{}", "{a/b: 5}") % "", "services[a/b]: must map ports to ports"),
        ("services: [{name: a, namespace: b, hostname: c, vips: [10.0.0.1]}]",
         "services[0].vips[0]: '10.0.0.1' must be NETWORK/IP"),
        ("services: [{name: a, namespace: b, hostname: c, loadBalancer: {mode: Best}}]",
         "services[0].loadBalancer.mode: must be one of"),
        ("policies: [{name: a, namespace: b, scope: Global, action: Deny, rules: []}]",
         "policy b/a is malformed: KeyError('dryRun')"),
        ("policies: [{name: a, namespace: b, scope: Global, action: Deny, rules: [], dryRun: no, "
         "x: 1}]", "policy b/a: unknown key 'x'"),
    ],
)  # fmt: skip
def test_every_fault_names_file_entry_and_key(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_local(text, "mesh.yaml")
    assert str(error.value).startswith("mesh.yaml: ")
    assert words in str(error.value)
