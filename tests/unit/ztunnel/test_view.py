"""What workers get to see of the mesh's state."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from metalmesh.model.authorization import Action, Authorization, PolicyScope
from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyRule,
    SelectedWorkload,
)
from metalmesh.model.service import Service
from metalmesh.model.workload import Locality, NetworkAddress, TunnelProtocol, Workload
from metalmesh.policy.network_policy import network_policy_from_dict
from metalmesh.policy.trust_domains import TrustDomains
from metalmesh.routing.route import Hop, Route, RouteKind
from metalmesh.routing.state import MeshState
from metalmesh.zds.messages import AddWorkload
from metalmesh.ztunnel import messages
from metalmesh.ztunnel.view import (
    LocalView,
    find_local,
    labels_of,
    policies_for,
    route_message,
    view_local,
)

WEB = Workload(
    uid="wds/web",
    name="web-1",
    namespace="shop",
    service_account="web",
    addresses=(ip_address("10.1.0.7"),),
    protocol=TunnelProtocol.HBONE,
    workload_name="web",
    canonical_name="front",
    canonical_revision="v2",
    cluster_id="site-a",
    locality=Locality("r1", "z1"),
    node="n1",
)
ANNOUNCED = AddWorkload("zds/web", "web-1", "shop", "web")


def state_of(*workloads: Workload) -> MeshState:
    state = MeshState()
    state.apply_addresses({workload.uid: workload for workload in workloads})
    return state


def test_labels_are_those_of_logs_and_metrics() -> None:
    """istio-facts 8.1: app and version are the canonical ones."""
    labels = labels_of(WEB)
    assert tuple(labels) == messages.LABEL_KEYS
    assert labels["principal"] == "spiffe://cluster.local/ns/shop/sa/web"
    assert (labels["name"], labels["workload"]) == ("web-1", "web")
    assert (labels["app"], labels["version"], labels["zone"]) == ("front", "v2", "z1")
    assert labels_of(replace(WEB, protocol=TunnelProtocol.NONE))["principal"] == ""


def test_local_workload_is_found_by_uid_or_by_its_names() -> None:
    by_uid = replace(WEB, uid="zds/web")
    assert find_local(state_of(WEB), ANNOUNCED) == WEB
    assert find_local(state_of(WEB, by_uid), ANNOUNCED) == by_uid


def test_local_workload_with_another_account_is_unknown() -> None:
    """The control plane is the authority for identity."""
    other = replace(WEB, uid="zds/web", service_account="admin")
    assert find_local(state_of(other), ANNOUNCED) is None


def test_unknown_workload_has_an_empty_view() -> None:
    assert view_local(None) == LocalView()
    assert LocalView().added(ANNOUNCED) == messages.AddWorkload(
        uid="zds/web", name="web-1", namespace="shop", service_account="web"
    )
    updated = view_local(WEB).updated(ANNOUNCED)
    assert updated.identity == "spiffe://cluster.local/ns/shop/sa/web"
    assert updated.addresses == ("10.1.0.7",)
    assert updated.labels == labels_of(WEB)


def test_policies_of_a_workload_are_its_own_and_tell_what_is_missing() -> None:
    policy = Authorization(
        name="p", namespace="shop", scope=PolicyScope.NAMESPACE, action=Action.DENY
    )
    peers = (Peer(ip_network("10.1.0.0/24")),)
    selecting = CompiledNetworkPolicy(
        name="np",
        namespace="shop",
        selected=(SelectedWorkload("wds/web", ()), SelectedWorkload("wds/other", ())),
        ingress=True,
        egress=False,
        ingress_rules=(
            PolicyRule(peers=peers),
            PolicyRule(only_uids=frozenset({"wds/web"})),
            PolicyRule(only_uids=frozenset({"wds/other"})),
        ),
    )
    other = replace(selecting, name="other", selected=(SelectedWorkload("wds/other", ()),))
    state = state_of(WEB)
    state.apply_policies({policy.key: policy})
    state.apply_network_policies({selecting.key: selecting, other.key: other})
    workload = replace(WEB, authorization_policies=("shop/late",))
    found = policies_for(state, "zds/web", workload, inner_enforcement=False)
    assert (found.uid, found.missing, found.inner_enforcement) == (
        "zds/web", ("shop/late",), False,
    )  # fmt: skip
    assert found.authorizations == (policy.to_dict(),)
    (seen,) = map(network_policy_from_dict, found.network_policies)
    assert seen.selected == (SelectedWorkload("zds/web", ()),)
    assert seen.ingress_rules == (PolicyRule(peers=peers), PolicyRule())


def test_route_carries_service_endpoints_and_labels() -> None:
    service = Service(
        name="web",
        namespace="shop",
        hostname="web.shop.svc.cluster.local",
        vips=(NetworkAddress("", ip_address("10.96.0.1")),),
    )
    hop = Hop(
        workload=replace(WEB, capacity=3),
        address="10.1.0.7:15008",
        authority="10.1.0.7:8080",
        identities=("spiffe://cluster.local/ns/shop/sa/web",),
    )
    route = Route(kind=RouteKind.HBONE, service=service, hops=(hop,))
    assert route_message(route, TrustDomains(), cacheable=True) == messages.Route(
        kind="hbone",
        service=messages.ServiceRef("web.shop.svc.cluster.local", "web", "shop"),
        endpoints=(
            messages.Endpoint(
                address="10.1.0.7:15008",
                authority="10.1.0.7:8080",
                identities=("spiffe://cluster.local/ns/shop/sa/web",),
                weight=3,
                workload=labels_of(WEB),
            ),
        ),
    )
    error = Route(kind=RouteKind.ERROR, error="no")
    failed = route_message(error, TrustDomains(), cacheable=False)
    assert failed == messages.Route(kind="error", error="no", cacheable=False)
