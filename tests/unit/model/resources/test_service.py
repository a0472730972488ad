"""Service."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

from typing import Any

import pytest


def test_everything_of_a_service_is_read(read: Any) -> None:
    service = read(
        "Service",
        "selector: {app: echo}\nclusterIP: 10.96.0.10\nclusterIPs: [10.96.0.10, 'fd00::10']\n"
        "ipFamilies: [IPv4, IPv6]\nipFamilyPolicy: RequireDualStack\ninternalTrafficPolicy: Local\n"
        "trafficDistribution: PreferClose\npublishNotReadyAddresses: true\nports:\n"
        "- {name: http, port: 80, targetPort: web, appProtocol: http}\n- {name: b, port: 81}\n"
        "- {name: dns, port: 53, protocol: UDP, targetPort: 5353}",
    )
    assert service.selector == (("app", "echo"),)
    assert list(map(str, service.cluster_ips)) == ["10.96.0.10", "fd00::10"]
    assert [(port.port, port.target, port.protocol) for port in service.ports] == [
        (80, "web", "TCP"),
        (81, 81, "TCP"),
        (53, 5353, "UDP"),
    ]
    assert (service.internal_traffic_policy, service.publish_not_ready) == ("Local", True)


def test_headless_has_no_addresses(read: Any) -> None:
    service = read("Service", "clusterIP: None\nports: [{port: 80}]")
    assert (service.headless, service.cluster_ips) == (True, ())


WRONG = [
    ("type: ExternalName\nexternalName: x", "spec.type: ExternalName is not supported; use a ServiceEntry or DNS"),
    ("type: Foo", "spec.type: must be one of ClusterIP, NodePort, LoadBalancer, got 'Foo'"),
    ("clusterIP: 10.96.0", "spec.clusterIPs[0]: '10.96.0' is not an IP address"),
    ("clusterIP: 10.96.0.1\nclusterIPs: [10.96.0.2]", "spec.clusterIPs[0]: must equal clusterIP '10.96.0.1'"),
    ("clusterIPs: [None, 10.96.0.2]", "spec.clusterIPs: None must stand alone"),
    ("ports: [{targetPort: 80}]", "spec.ports[0].port: is required"),
    ("ports: [{port: 65536}]", "spec.ports[0].port: must be 1 to 65535, got 65536"),
    ("ports: [{port: 80, targetPort: '80'}]", "spec.ports[0].targetPort: must be 1 to 65535 or a port name, got '80'"),
    ("ports: [{port: 80, protocol: tcp}]", "spec.ports[0].protocol: must be one of TCP, UDP, SCTP, got 'tcp'"),
    ("ports: [{port: 80}, {port: 81, name: b}]", "spec.ports[0].name: is required when a service has several ports"),
    ("ports: [{port: 80, name: a}, {port: 80, name: b}]", "spec.ports[1].port: TCP 80 is listed twice"),
    ("ports: [{port: 80, name: a}, {port: 81, name: a}]", "spec.ports[1].name: 'a' is used twice"),
    ("trafficDistribution: Prefer", "spec.trafficDistribution: must be one of PreferClose, PreferSameZone, PreferSameNode, got 'Prefer'"),
    ("selector: {app: [a]}", "spec.selector['app']: must be a string, got a list; quote it"),
    ("ports: [80]", "spec.ports[0]: must be a mapping, got 80"),
    ("slector: {}", "spec.slector: unknown field; did you mean selector?"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=[row[0] for row in WRONG])
def test_fault_names_field_and_remedy(read: Any, case: tuple[str, str]) -> None:
    assert case[1] in read("Service", case[0])


def test_one_port_number_may_serve_two_protocols(read: Any) -> None:
    spec = "ports: [{port: 53, name: a}, {port: 53, name: b, protocol: UDP}]"
    assert len(read("Service", spec).ports) == 2
