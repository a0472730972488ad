"""ServiceEntry."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

from typing import Any

import pytest

from metalmesh.model.resources.service_entry import Resolution
from metalmesh.model.workload import Locality

HOST = "hosts: [a.example.com]\n"


def test_everything_of_a_service_entry_is_read(read: Any) -> None:
    entry = read(
        "ServiceEntry",
        "hosts: [A.example.com., '*.b.example.com']\naddresses: [192.0.2.1, 192.0.2.1/32, 10.0.0.0/8, 'fd00::/64']\n"
        "location: MESH_INTERNAL\nresolution: STATIC\nsubjectAltNames: [spiffe://x/ns/a/sa/b]\nexportTo: ['.']\n"
        "ports: [{number: 80, name: http, protocol: http, targetPort: 8080}, {number: 81, name: tcp}]\n"
        "endpoints:\n- {address: 10.1.1.1, ports: {http: 8888}, labels: {app: a}, network: n, locality: r/z, weight: 5, serviceAccount: s}\n"
        "- {address: 'fd00::1'}",
    )
    assert entry.hosts == ("a.example.com", "*.b.example.com")
    assert list(map(str, entry.addresses)) == ["192.0.2.1"]
    assert list(map(str, entry.cidrs)) == ["10.0.0.0/8", "fd00::/64"]
    assert [(port.port, port.target, port.protocol) for port in entry.ports] == [
        (80, 8080, "HTTP"),
        (81, 81, "TCP"),
    ]
    assert (entry.resolution, entry.location) == (Resolution.STATIC, "MESH_INTERNAL")
    one, other = entry.endpoints
    assert (one.place, one.ports, one.locality) == ("10.1.1.1", {"http": 8888}, Locality("r", "z"))
    assert (one.network, one.weight, one.service_account) == ("n", 5, "s")
    assert (other.place, other.weight, other.service_account) == ("fd00::1", 1, "default")
    assert (entry.private, entry.exported, entry.wants_address) == (True, True, False)


def test_defaults_are_istios(read: Any) -> None:
    entry = read("ServiceEntry", HOST)
    assert (entry.resolution, entry.location) == (Resolution.NONE, "MESH_EXTERNAL")
    assert (entry.private, entry.exported, entry.selector) == (False, True, None)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("resolution: STATIC", True),
        ("resolution: DNS", True),
        ("resolution: NONE", False),
        ("resolution: STATIC\naddresses: [192.0.2.1]", False),
        ("resolution: STATIC\naddresses: [192.0.2.0/24]", False),
    ],
)
def test_who_gets_an_address_of_the_meshs_choice(read: Any, spec: str, expected: bool) -> None:
    assert read("ServiceEntry", HOST + spec).wants_address is expected


@pytest.mark.parametrize(
    ("names", "private", "exported"),
    [
        ("[]", False, True),
        ("['*']", False, True),
        ("['.']", True, True),
        ("[demo]", True, True),
        ("['.', other]", False, True),
        ("['~']", False, False),
    ],
)
def test_visibility(read: Any, names: str, private: bool, exported: bool) -> None:
    entry = read("ServiceEntry", f"{HOST}exportTo: {names}")
    assert (entry.private, entry.exported) == (private, exported)


STATIC, DNS = HOST + "resolution: STATIC\n", HOST + "resolution: DNS\n"
WRONG = [
    ("", "spec.hosts: is required"),
    ("hosts: []", "spec.hosts: must not be empty"),
    ("hosts: ['*']", "spec.hosts[0]: must not be * alone; give a domain such as *.example.com"),
    ("hosts: ['a.*.com']", "spec.hosts[0]: 'a.*.com' is not a host name, nor *. and a domain"),
    ("hosts: [192.0.2.1]", "spec.hosts[0]: '192.0.2.1' is not a host name, nor *. and a domain"),
    ("hosts: [a.b, A.b]", "spec.hosts[1]: 'A.b' is listed twice"),
    (HOST + "resolution: Dns", "spec.resolution: must be one of NONE, STATIC, DNS, DNS_ROUND_ROBIN, got 'Dns'"),
    (HOST + "location: here", "spec.location: must be one of MESH_EXTERNAL, MESH_INTERNAL, got 'here'"),
    (HOST + "addresses: [x]", "spec.addresses[0]: 'x' is not an IP address"),
    (HOST + "addresses: [10.0.0.0/33]", "spec.addresses[0]: '10.0.0.0/33' is not a CIDR such as 10.0.0.0/8"),
    (HOST + "addresses: [0.0.0.0/0]", "spec.addresses[0]: 0.0.0.0/0 would take every destination; give a smaller range"),
    (DNS + "addresses: [10.0.0.0/8]", "spec.addresses: CIDRs are for resolution NONE or STATIC; give single addresses"),
    (HOST + "ports: [{name: a}]", "spec.ports[0].number: is required"),
    (HOST + "ports: [{number: 80}]", "spec.ports[0].name: is required"),
    (HOST + "ports: [{number: 80, name: A}]", "spec.ports[0].name: 'A' must be lower-case letters, digits and dashes"),
    (HOST + "ports: [{number: 80, name: a, protocol: QUIC}]", "spec.ports[0].protocol: must be one of TCP, UDP, HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TLS, MONGO, MYSQL, REDIS"),
    (HOST + "ports: [{number: 80, name: a}, {number: 80, name: b}]", "spec.ports[1].number: 80 is listed twice"),
    (HOST + "ports: [{number: 80, name: a}, {number: 81, name: a}]", "spec.ports[1].name: 'a' is used twice"),
    (HOST + "ports: [{number: 80, name: a, targetPort: 81}]", "spec.ports[0].targetPort: must be absent for resolution NONE: connections go where the client wanted"),
    (HOST + "endpoints: [{address: 10.0.0.1}]", "spec.endpoints: must be absent for resolution NONE; use STATIC or DNS"),
    (STATIC + "endpoints: [{address: a.b}]", "spec.endpoints[0].address: 'a.b' is a name; use resolution DNS, or an IP address"),
    (STATIC + "endpoints: [{address: unix:///x}]", "spec.endpoints[0].address: unix sockets are not supported; give an IP address"),
    (STATIC + "endpoints: [{}]", "spec.endpoints[0].address: is required"),
    (STATIC + "endpoints: [{address: 127.0.0.1}]", "spec.endpoints[0].address: 127.0.0.1 cannot be the address of a workload"),
    (STATIC + "endpoints: [{address: 10.0.0.1, ports: {x: 1}}]", "spec.endpoints[0].ports.x: is no port of this ServiceEntry"),
    (STATIC + "endpoints: [{address: 10.0.0.1}]\nworkloadSelector: {labels: {a: b}}", "spec.workloadSelector: cannot stand beside endpoints; use one of the two"),
    (STATIC + "workloadSelector: {}", "spec.workloadSelector.labels: must not be empty"),
    (HOST + "workloadSelector: {labels: {a: b}}", "spec.workloadSelector: has no effect with resolution NONE; use STATIC"),
    ("hosts: ['*.a.b']\nresolution: DNS", "spec.hosts[0]: '*.a.b' cannot be looked up; give endpoints, or resolution NONE"),
    (HOST + "resolution: DNS_ROUND_ROBIN\nendpoints: [{address: a.b}, {address: c.d}]", "spec.endpoints: at most one for resolution DNS_ROUND_ROBIN; use DNS"),
    (HOST + "exportTo: [a.b]", "spec.exportTo[0]: 'a.b' must be ., *, ~ or a namespace"),
    (HOST + "exportTo: ['*', a]", "spec.exportTo: * and ~ must stand alone"),
    (HOST + "adresses: []", "spec.adresses: unknown field; did you mean addresses?"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_fault_names_field_and_remedy(read: Any, case: tuple[str, str]) -> None:
    assert case[1] in read("ServiceEntry", case[0])
