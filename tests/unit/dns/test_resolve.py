"""Which service a name means: the rules of istio-facts 7, row by row."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from metalmesh.dns.message import Answer, Location, Query, ResponseCode
from metalmesh.dns.resolve import Client, ServiceNames
from metalmesh.model.service import Service
from metalmesh.model.workload import NetworkAddress, Workload

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


ECHO = service("echo.demo.svc.cluster.local", "demo", V4, V6, port_names={"http": 80})
HEADLESS = service("db.demo.svc.cluster.local", port_names={"sql": 5432})
DB_1 = Workload(uid="1", name="db-1", namespace="demo", addresses=(E1, E6))
DB_2 = Workload(uid="2", name="db-2", namespace="demo", addresses=(E2,))
EXTERNAL = service("api.example.com", "demo", V4)
WILDCARD = service("*.example.org", "demo", V4)
NO_ADDRESS = service("www.example.net", "demo")
ONLY4 = service("four.demo.svc.cluster.local", "demo", V4, V6, ip_families="IPv4")
PRIVATE = service("inner.other.svc.cluster.local", "other", V4, private=True)
ALL = (ECHO, HEADLESS, EXTERNAL, WILDCARD, NO_ADDRESS, ONLY4, PRIVATE)


def ask(
    name: str,
    kind: int = 1,
    *,
    namespace: str = "demo",
    services=ALL,
    in_class: bool = True,
    authority: bool = True,
    network: str = "",
):
    query = Query(
        id=1, recursion_desired=True, name=name, type=kind, in_class=in_class, question=b""
    )
    return ServiceNames(services, DOMAIN, authority=authority).answer(
        query,
        Client(namespace, network),
        lambda found: [(DB_1, {5432: 6000}), (DB_2, {})] if found is HEADLESS else [],
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


def test_who_is_no_authority_leaves_unknown_names_and_types_to_the_next_server():
    for name in ("none.demo.svc.cluster.local", "cluster.local", "_x._tcp.echo"):
        assert ask(name, authority=False) is None
    assert ask("echo.demo.svc.cluster.local", 16, authority=False) is None
    assert ask("echo", authority=False) == Answer(addresses=(V4,))
    # a family the service does not have is an answer, not a question for others
    assert ask("four", 28, authority=False) == Answer()


def test_addresses_of_other_networks_are_not_told():
    assert ask("echo", network="elsewhere") == Answer()


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("db-1.db", ""),
        ("db-1.db.demo.svc.cluster.local", ""),
        ("DB-1.db.demo".lower(), ""),
        ("db-1.db.demo.svc.cluster.local.svc.cluster.local", "db-1.db.demo.svc.cluster.local"),
    ],
)
def test_endpoints_of_a_headless_service_have_names(name, alias):
    assert ask(name) == Answer(alias=alias, addresses=(E1,))
    assert ask(name, 28).addresses == (E6,)


def test_endpoints_of_a_service_with_an_address_and_strangers_have_none():
    assert ask("db-1.echo.demo.svc.cluster.local") == Answer(ResponseCode.NXDOMAIN)
    assert ask("db-9.db.demo.svc.cluster.local") == Answer(ResponseCode.NXDOMAIN)
    assert ask("db-9.db.demo.svc.cluster.local", authority=False) is None


def test_named_ports_have_locations():
    assert ask("_http._tcp.echo", 33) == Answer(
        locations=(Location(80, "echo.demo.svc.cluster.local"),)
    )
    assert ask("_sql._tcp.db.demo.svc.cluster.local", 33) == Answer(
        locations=(
            Location(6000, "db-1.db.demo.svc.cluster.local"),
            Location(5432, "db-2.db.demo.svc.cluster.local"),
        )
    )
    assert ask("_http._tcp.echo.demo.svc.cluster.local", 1) == Answer()


@pytest.mark.parametrize(
    "name", ["_other._tcp.echo", "_http._udp.echo", "_http._tcp.none", "_http", "_sql._tcp.db-1.db"]
)
def test_ports_that_are_not_there_have_no_location(name):
    assert ask(f"{name}.demo.svc.cluster.local", 33) == Answer(ResponseCode.NXDOMAIN)
