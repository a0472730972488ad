"""NetworkPolicy: selectors become addresses, named ports numbers."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

import ipaddress

import pytest
import yaml

from metalmesh.model.network_policy import CompiledNetworkPolicy, Protocol
from metalmesh.model.resources import ParsedObject, parse_object
from metalmesh.policy.network_policy import Endpoint, evaluate
from metalmesh.policy.network_policy_compile import (
    PolicyTarget,
    TargetIndex,
    compile_network_policy,
    port_protocol,
)

IP = ipaddress.ip_address
TCP, UDP = Protocol.TCP, Protocol.UDP


def _target(uid: str, address: str, labels: dict[str, str], **ports: int) -> PolicyTarget:
    return PolicyTarget(
        uid=uid,
        namespace=uid.split("/")[0],
        labels=labels,
        addresses=(IP(address), IP("fd00::" + address.rsplit(".", 1)[1])),
        ports={
            name.replace("_", "-"): (port_protocol(name.replace("_", "-")), port)
            for name, port in ports.items()
        },
    )


TARGETS = {
    target.uid: target
    for target in (
        _target("a/web", "10.0.0.1", {"app": "web"}, http=8080, udp_dns=53),
        _target("a/db", "10.0.0.2", {"app": "db"}, http=9090),
        _target("b/web", "10.0.0.3", {"app": "web", "tier": "x"}, http=8080),
        _target("c/job", "10.0.0.4", {}),
    )
}
NAMESPACES = {"a": {"team": "blue"}, "b": {"team": "red"}, "c": {"team": "red", "env": "test"}}
INDEX = TargetIndex(TARGETS.values(), NAMESPACES)


def _compile(spec: str, namespace: str = "a") -> CompiledNetworkPolicy:
    data = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": yaml.safe_load(spec),
    }
    (found,) = parse_object(data, "f")
    assert isinstance(found, ParsedObject), found
    return compile_network_policy(found.resource, INDEX)


def _sources(spec: str, destination: str = "a/web", port: int = 80) -> set[str]:
    """Who may reach ``port`` of the destination; it reaches itself whatever the policies say."""
    policy = _compile(spec)
    to = TARGETS[destination]
    return {
        uid
        for uid, target in TARGETS.items()
        if evaluate(
            [policy],
            Endpoint(target.addresses[0], uid),
            Endpoint(to.addresses[0], to.uid),
            TCP,
            port,
        ).allowed
    } - {destination}


ALL = set(TARGETS)
FROM = "podSelector: {}\ningress: [{from: [%s]}]"
PEERS = [
    ("podSelector: {}", set()),
    ("podSelector: {}\ningress: [{}]", ALL),
    ("podSelector: {}\ningress: [{from: []}]", ALL),
    ("podSelector: {matchLabels: {app: none}}", ALL),
    (FROM % "{podSelector: {}}", {"a/web", "a/db"}),
    (FROM % "{podSelector: {matchLabels: {app: db}}}", {"a/db"}),
    (FROM % "{namespaceSelector: {}}", ALL),
    (FROM % "{namespaceSelector: {matchLabels: {team: red}}}", {"b/web", "c/job"}),
    (
        FROM % "{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}",
        {"b/web"},
    ),
    (
        FROM % "{namespaceSelector: {matchLabels: {team: red}}}, {podSelector: {matchLabels: {app: db}}}",
        {"b/web", "c/job", "a/db"},
    ),
    (
        FROM % "{namespaceSelector: {matchExpressions: [{key: env, operator: DoesNotExist}]}}",
        {"a/web", "a/db", "b/web"},
    ),
    (FROM % "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}}", {"a/web"}),
    (FROM % "{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.2/31]}}", {"a/web", "c/job"}),
    (FROM % "{podSelector: {matchLabels: {app: nobody}}}", set()),
]  # fmt: skip


@pytest.mark.parametrize("case", PEERS, ids=[row[0][:90] for row in PEERS])
def test_peers(case: tuple[str, set[str]]) -> None:
    assert _sources(case[0]) == case[1] - {"a/web"}


def test_selected_workloads_carry_every_address() -> None:
    (selected,) = _compile("podSelector: {matchLabels: {app: db}}").selected
    assert (selected.uid, selected.addresses) == ("a/db", (IP("10.0.0.2"), IP("fd00::2")))


def test_nobody_is_kept_from_himself() -> None:
    """Kubernetes, "Network Policies": a pod cannot block access to itself."""
    policy = _compile("podSelector: {}\npolicyTypes: [Ingress, Egress]")
    for address in TARGETS["a/web"].addresses:
        own = Endpoint(address, "a/web")
        assert evaluate([policy], own, own, TCP, 80).allowed
    other = Endpoint(TARGETS["a/db"].addresses[0], "a/db")
    assert not evaluate([policy], other, own, TCP, 80).allowed


def test_second_family_of_a_peer_is_admitted_too() -> None:
    policy = _compile(FROM % "{podSelector: {matchLabels: {app: db}}}")
    source, to = Endpoint(IP("fd00::2"), "a/db"), Endpoint(IP("fd00::1"), "a/web")
    assert evaluate([policy], source, to, TCP, 80).allowed


def test_named_port_of_ingress_is_the_selected_workloads() -> None:
    spec = "podSelector: {}\ningress: [{ports: [{port: http}]}]"
    assert _sources(spec, "a/web", 8080) == ALL - {"a/web"}
    assert _sources(spec, "a/web", 9090) == set()
    assert _sources(spec, "a/db", 9090) == ALL - {"a/db"}
    assert _sources(spec, "a/db", 8080) == set()


def test_named_and_numbered_ports_stand_side_by_side() -> None:
    spec = "podSelector: {}\ningress: [{ports: [{port: http}, {port: 22}]}]"
    assert _sources(spec, "a/db", 22) == ALL - {"a/db"}
    assert _sources(spec, "a/db", 9090) == ALL - {"a/db"}
    assert _sources(spec, "a/db", 80) == set()


def test_name_that_nobody_has_admits_nothing() -> None:
    assert _sources("podSelector: {}\ningress: [{ports: [{port: grpc}]}]", port=80) == set()


def test_name_of_another_protocol_admits_nothing() -> None:
    """Kubernetes: a named port matches name and protocol."""
    policy = _compile("podSelector: {}\ningress: [{ports: [{port: http, protocol: UDP}]}]")
    source, to = Endpoint(IP("10.0.0.2"), "a/db"), Endpoint(IP("10.0.0.1"), "a/web")
    assert not evaluate([policy], source, to, UDP, 8080).allowed
    policy = _compile("podSelector: {}\ningress: [{ports: [{port: udp-dns, protocol: UDP}]}]")
    assert evaluate([policy], source, to, UDP, 53).allowed
    assert not evaluate([policy], source, to, TCP, 53).allowed


def _destinations(spec: str, port: int) -> set[str]:
    policy = _compile(spec)
    return {
        uid
        for uid, target in TARGETS.items()
        if evaluate(
            [policy],
            Endpoint(IP("10.0.0.1"), "a/web"),
            Endpoint(target.addresses[0], uid),
            TCP,
            port,
        ).allowed
    } - {"a/web"}


def test_named_port_of_egress_is_the_peers() -> None:
    spec = "podSelector: {}\npolicyTypes: [Egress]\negress: [{ports: [{port: http}]}]"
    assert _destinations(spec, 8080) == {"b/web"}
    assert _destinations(spec, 9090) == {"a/db"}


def test_named_port_of_egress_within_a_block_and_a_selector() -> None:
    spec = (
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{to: [%s], ports: [{port: http}]}]"
    )  # fmt: skip
    assert _destinations(spec % "{ipBlock: {cidr: 10.0.0.3/32}}", 8080) == {"b/web"}
    assert _destinations(spec % "{podSelector: {}}", 8080) == set()
    assert _destinations(spec % "{podSelector: {}}", 9090) == {"a/db"}


def test_rules_of_a_direction_that_is_not_in_force_are_dropped() -> None:
    policy = _compile("podSelector: {}\npolicyTypes: [Egress]\ningress: [{}]")
    assert (policy.ingress, policy.ingress_rules) == (False, ())


@pytest.mark.parametrize(
    ("name", "protocol"), [("http", TCP), ("udp", UDP), ("udp-dns", UDP), ("sctp-x", Protocol.SCTP)]
)
def test_protocol_of_a_named_port_follows_istios_naming(name: str, protocol: Protocol) -> None:
    assert port_protocol(name) is protocol
