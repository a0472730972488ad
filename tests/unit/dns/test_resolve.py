"""Which service a name means: the rules of istio-facts 7, row by row."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from metalmesh.dns.message import Answer, Query, ResponseCode
from metalmesh.dns.resolve import ServiceNames
from metalmesh.model.service import Service
from metalmesh.model.workload import NetworkAddress

DOMAIN = "cluster.local"
V4, V6 = ip_address("10.96.0.10"), ip_address("fd10::10")
E1, E2, E6 = ip_address("10.1.1.1"), ip_address("10.1.1.2"), ip_address("fd01::1")


def service(hostname: str, namespace: str = "demo", *vips, **fields) -> Service:
    return Service(
        name=hostname.split(".")[0],
        namespace=namespace,
        hostname=hostname,
        vips=tuple(NetworkAddress("", vip) for vip in vips),
        **fields,
    )


ECHO = service("echo.demo.svc.cluster.local", "demo", V4, V6)
HEADLESS = service("db.demo.svc.cluster.local")
EXTERNAL = service("api.example.com", "demo", V4)
WILDCARD = service("*.example.org", "demo", V4)
NO_ADDRESS = service("www.example.net", "demo")
ONLY4 = service("four.demo.svc.cluster.local", "demo", V4, V6, ip_families="IPv4")
PRIVATE = service("inner.other.svc.cluster.local", "other", V4, private=True)
ALL = (ECHO, HEADLESS, EXTERNAL, WILDCARD, NO_ADDRESS, ONLY4, PRIVATE)


def ask(name: str, kind: int = 1, *, namespace: str = "demo", services=ALL, in_class: bool = True):
    query = Query(
        id=1, recursion_desired=True, name=name, type=kind, in_class=in_class, question=b""
    )
    return ServiceNames(services, DOMAIN).answer(
        query,
        namespace,
        lambda found: [(E1, E6), (E2,)] if found is HEADLESS else [],
        lambda addresses: addresses.sort(key=str),
    )


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("echo", ""),
        ("echo.demo", ""),
        ("echo.demo.svc", ""),
        ("echo.demo.svc.cluster.local", ""),
        # a resolver has appended a search domain
        ("echo.demo.svc.cluster.local.demo.svc.cluster.local", "echo.demo.svc.cluster.local"),
        ("echo.demo.demo.svc.cluster.local", "echo.demo"),
        ("echo.demo.svc.cluster.local.svc.cluster.local", "echo.demo.svc.cluster.local"),
        ("echo.demo.svc.cluster.local.cluster.local", "echo.demo.svc.cluster.local"),
        ("api.example.com", ""),
        ("api.example.com.demo.svc.cluster.local", "api.example.com"),
        ("deep.any.example.org", ""),
        # found by a wildcard: no alias
        ("any.example.org.cluster.local", ""),
    ],
)
def test_forms_of_a_name_and_their_alias(name, alias):
    assert ask(name) == Answer(alias=alias, addresses=(V4,))


@pytest.mark.parametrize(
    "name", ["example.org", "example.com", "debian.org", "echoo", "www.example.net"]
)
def test_other_names_are_another_servers(name):
    assert ask(name) is None


@pytest.mark.parametrize(
    "name", ["none.demo.svc.cluster.local", "cluster.local", "x.cluster.local"]
)
def test_what_the_clusters_domain_does_not_have_does_not_exist(name):
    assert ask(name) == Answer(ResponseCode.NXDOMAIN)


def test_short_name_belongs_to_the_clients_namespace():
    assert ask("echo", namespace="other") is None
    assert ask("echo.demo", namespace="other") == Answer(addresses=(V4,))


def test_client_without_namespace_uses_full_enough_names():
    assert ask("echo", namespace="") is None
    assert ask("echo.demo", namespace="") == Answer(addresses=(V4,))


def test_families():
    assert ask("echo", 28) == Answer(addresses=(V6,))
    assert ask("four", 28) == Answer()
    assert ask("db") == Answer(addresses=(E1, E2))
    assert ask("db", 28) == Answer(addresses=(E6,))
    assert ask("api.example.com", 28) == Answer()


def test_other_types_of_our_names_are_empty_and_of_others_forwarded():
    assert ask("echo.demo.svc.cluster.local", 16) == Answer()
    assert ask("api.example.com", 16) is None
    assert ask("echo.demo.svc.cluster.local", in_class=False) is None


def test_private_service_is_seen_from_its_namespace_only():
    assert ask("inner.other", namespace="other") == Answer(addresses=(V4,))
    assert ask("inner.other.svc.cluster.local") == Answer(ResponseCode.NXDOMAIN)


def test_of_equal_names_the_clients_namespace_wins_then_the_canonical():
    mine = service("shared.example.com", "demo", ip_address("10.96.0.1"))
    canonical = service("shared.example.com", "z", ip_address("10.96.0.2"), canonical=True)
    first = service("shared.example.com", "a", ip_address("10.96.0.3"))
    services = (first, canonical, mine)
    assert ask("shared.example.com", services=services).addresses == (ip_address("10.96.0.1"),)
    assert ask("shared.example.com", namespace="y", services=services).addresses == (
        ip_address("10.96.0.2"),
    )
    assert ask("shared.example.com", namespace="y", services=(first, mine)).addresses == (
        ip_address("10.96.0.3"),
    )
