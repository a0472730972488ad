"""A dump as istioctl shows it (istio-facts 11.1)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from metalmesh.render.ztunnel_config import Filters, render, render_all, select

NOW = datetime(2026, 8, 20, 12, 0, tzinfo=UTC)
IDENTITY = "spiffe://cluster.local/ns/shop/sa/cart"


def certificate(serial: int, before: str, after: str) -> dict[str, str]:
    return {"serialNumber": str(serial), "validFrom": before, "expirationTime": after, "pem": ""}


def workload(name: str, address: str, node: str, **more: Any) -> dict[str, Any]:
    return {
        "uid": f"site-a//Pod/shop/{name}", "name": name, "namespace": "shop",
        "workloadIps": [address], "node": node, "protocol": "HBONE", **more,
    }  # fmt: skip


WAYPOINT = {"waypoint": {"destination": "shop/wp.shop.svc.cluster.local", "hboneMtlsPort": 15008}}
CONNECTION = {
    "src": "10.1.0.7:51344", "originalDst": "10.96.0.10:80", "actualDst": "10.1.0.9:15008",
    "protocol": "HBONE",
}  # fmt: skip
INFO = {"name": "web-1", "namespace": "shop", "serviceAccount": "web"}
DUMP: dict[str, Any] = {
    "workloads": [
        workload("web-1", "10.1.0.7", "node-a"),
        workload("cart-1", "10.1.0.9", "node-b", **WAYPOINT),
        {"name": "db", "namespace": "ext", "workloadIps": [], "hostname": "db.example.com",
         "node": "", "protocol": "TCP"},
    ],
    "services": [
        {"name": "cart", "namespace": "shop", "hostname": "cart.shop.svc.cluster.local",
         "vips": ["/10.96.0.10"], **WAYPOINT,
         "endpoints": {"a": {"status": "Healthy"}, "b": {"status": "Unhealthy"}}},
        {"name": "wp", "namespace": "shop", "hostname": "wp.shop.svc.cluster.local",
         "vips": [], "endpoints": {}},
    ],
    "policies": [
        {"name": "only-web", "namespace": "shop", "action": "Allow", "scope": "WorkloadSelector"}
    ],
    "certificates": [
        {"identity": IDENTITY, "state": "Available",
         "certChain": [certificate(255, "2026-08-20T09:56:00Z", "2026-08-21T09:58:00Z"),
                       certificate(16, "2025-08-20T09:56:00Z", "2026-08-20T11:59:59Z")],
         "rootCerts": [certificate(10, "2026-08-20T08:00:00Z", "2036-08-17T08:00:00Z")]},
        {"identity": "spiffe://cluster.local/ns/shop/sa/web", "state": "Unavailable: no answer",
         "certChain": [], "rootCerts": []},
    ],
    "workloadState": {
        "u1": {"state": "Up", "info": INFO,
               "connections": {"inbound": [], "outbound": [CONNECTION]}},
        "u2": {"state": "Up", "info": {"name": "cart-1", "namespace": "other"},
               "connections": {"outbound": [], "inbound": [
                   {"src": "10.1.0.7:51344", "originalDst": None, "actualDst": "10.1.0.9:8080",
                    "protocol": "HBONE"}]}},
    },
}  # fmt: skip

WORKLOADS = """\
NAMESPACE POD NAME ADDRESS        NODE   WAYPOINT PROTOCOL
ext       db       db.example.com        None     TCP
shop      cart-1   10.1.0.9       node-b wp       HBONE
shop      web-1    10.1.0.7       node-a None     HBONE
"""
SERVICES = """\
NAMESPACE SERVICE NAME SERVICE VIP WAYPOINT ENDPOINTS
shop      cart         10.96.0.10  wp       1/2
shop      wp           None        None     0/0
"""
POLICIES = """\
NAMESPACE POLICY NAME ACTION SCOPE
shop      only-web    Allow  WorkloadSelector
"""
CERTIFICATES = f"""\
CERTIFICATE NAME                           TYPE             STATUS          VALID CERT     SERIAL\
 NUMBER     NOT AFTER                NOT BEFORE
{IDENTITY}     Leaf             Available       true           ff                2026-08-21T09:58:\
00Z     2026-08-20T09:56:00Z
{IDENTITY}     Intermediate     Available       false          10                2026-08-20T11:59:\
59Z     2025-08-20T09:56:00Z
{IDENTITY}     Root             Available       true           a                 2036-08-17T08:00:\
00Z     2026-08-20T08:00:00Z
spiffe://cluster.local/ns/shop/sa/web      NA               Unavailable     NA             NA\
                NA                       NA
"""
CONNECTIONS = """\
WORKLOAD     DIRECTION LOCAL            REMOTE            REMOTE TARGET                  PROTOCOL
web-1.shop   Outbound  web-1.shop:51344 cart-1.shop:15008 cart.shop.svc.cluster.local:80 HBONE
cart-1.other Inbound   cart-1.shop:8080 web-1.shop:51344                                 HBONE
"""
RAW = """\
WORKLOAD     DIRECTION LOCAL          REMOTE         REMOTE TARGET PROTOCOL
web-1.shop   Outbound  10.1.0.7:51344 10.1.0.9:15008 10.96.0.10:80 HBONE
cart-1.other Inbound   10.1.0.9:8080  10.1.0.7:51344               HBONE
"""


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("workload", WORKLOADS),
        ("service", SERVICES),
        ("policy", POLICIES),
        ("certificate", CERTIFICATES),
        ("connections", CONNECTIONS),
    ],
)
def test_tables_are_istioctls(kind: str, text: str) -> None:
    """Columns, their order and what stands for nothing."""
    assert render(kind, DUMP, Filters(), NOW) == text


def test_raw_connections_show_addresses() -> None:
    assert render("connections", DUMP, Filters(raw=True), NOW) == RAW


def test_all_is_every_table_with_a_title() -> None:
    text = render_all(DUMP, Filters(), NOW, titles=True)
    assert text.startswith(f"WORKLOAD INFO\n{WORKLOADS}\nSERVICE INFO\n{SERVICES}\nPOLICY INFO\n")
    assert f"\nSECRET INFO\n{CERTIFICATES}\nCONNECTIONS INFO\n{CONNECTIONS}" in text
    assert "INFO" not in render_all(DUMP, Filters(), NOW, titles=False)


@pytest.mark.parametrize(
    ("kind", "filters", "names"),
    [
        ("workload", Filters(namespace="ext"), ["db"]),
        ("workload", Filters(node="node-a"), ["web-1"]),
        ("workload", Filters(address="10.1.0.9"), ["cart-1"]),
        ("workload", Filters(address="db.example.com"), ["db"]),
        ("workload", Filters(address="10.1.0"), []),
        ("service", Filters(namespace="ext"), []),
        ("policy", Filters(namespace="shop"), ["only-web"]),
    ],
)
def test_filters_leave_what_is_asked_for(kind: str, filters: Filters, names: list[str]) -> None:
    assert [item["name"] for item in select(kind, DUMP, filters)] == names


def test_certificates_are_filtered_by_the_namespace_of_their_identity() -> None:
    assert select("certificate", DUMP, Filters(namespace="shop")) == DUMP["certificates"]
    assert select("certificate", DUMP, Filters(namespace="sho")) == []


def test_connections_are_filtered_by_namespace_and_direction() -> None:
    assert list(select("connections", DUMP, Filters(namespace="other"))) == ["u2"]
    found = select("connections", DUMP, Filters(direction="outbound"))
    assert found["u1"]["connections"] == {"outbound": [CONNECTION]}


@pytest.mark.parametrize(
    ("destination", "name"),
    [
        ("shop/gone.shop.svc.cluster.local", "gone"),
        ("/10.96.0.10", "cart"),
        ("/10.1.0.9", "cart-1"),
        ("/10.9.9.9", "10.9.9.9"),
        ("/fd00::9", "fd00::9"),
    ],
)
def test_waypoint_is_named_by_its_service(destination: str, name: str) -> None:
    """Also when it is given by address, or not known (yet)."""
    one = workload("one", "10.1.0.1", "n", waypoint={"destination": destination})
    dump = {**DUMP, "workloads": [DUMP["workloads"][1], one]}
    row = render("workload", dump, Filters(address="10.1.0.1"), NOW).splitlines()[1]
    assert row.split() == ["shop", "one", "10.1.0.1", "n", name, "HBONE"]


def test_a_dump_of_another_ztunnel_may_lack_parts() -> None:
    """The Rust ztunnel leaves null and empty parts out."""
    for kind in ("workload", "service", "policy", "certificate", "connections"):
        assert render(kind, {"workloads": None}, Filters(), NOW).count("\n") == 1
