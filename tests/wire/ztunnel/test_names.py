"""Endpoints that are known by name (istio-facts 6.3), with a nameserver in the node."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from metalmesh.model.service import Service
from metalmesh.model.workload import NetworkAddress, Workload
from tests.support.apps import ask, echo_app
from tests.support.nameserver import A, Nameserver, nameserver
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage, ztunnel_stage

KEY = "shop/db.example"
VIP = "240.240.0.9"
SERVICE = Service(
    name="db",
    namespace="shop",
    hostname="db.example",
    vips=(NetworkAddress("", ip_address(VIP)),),
    ports={80: 8080},
)
NAMED = Workload(
    uid="named", name="db", namespace="shop", hostname="db.example", services={KEY: {80: 8080}}
)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[tuple[Stage, Guest, Guest, Nameserver]]:
    """A client, a server that the mesh knows by name only, and who knows its address."""
    with ztunnel_stage(tmp_path) as stage:
        one, two = stage.add_guest(), stage.add_guest()
        zone = {("db.example", A): [two.netns.address]}
        with nameserver(zone, ttl=60, where=stage.node, port=53) as server:
            conf = tmp_path / "resolv.conf"
            conf.write_text("nameserver 127.0.0.1\n")
            stage.settings["resolv_conf"] = str(conf)
            stage.plane.set(one.workload, SERVICE, NAMED)
            stage.plane.start()
            stage.start()
            stage.snapshot(one)
            stage.wait_ready()
            wait_until(
                lambda: "named" in [item["uid"] for item in stage.dump()["workloads"]],
                WAITS["policy"],
                what="endpoint arrived",
            )
            yield stage, one, two, server


def test_name_is_asked_for_once_while_its_answer_is_good(
    scene: tuple[Stage, Guest, Guest, Nameserver],
) -> None:
    stage, one, two, server = scene
    # without a ztunnel of its own the server takes plain connections as they come
    two.netns.run("nft", "flush", "ruleset")
    with echo_app(two.netns, 8080) as app:
        for _ in range(5):
            assert ask(one.netns, VIP, 80, b"x") == b"x"
    assert app.callers == [one.netns.address] * 5
    assert server.asked == ["db.example"] * 2, "A and AAAA, once"
    stage.wait_log("connection complete", 'dst.service="db.example"')
    assert "istio_on_demand_dns_total 5" in stage.metrics()


def test_next_address_of_a_name_is_tried(scene: tuple[Stage, Guest, Guest, Nameserver]) -> None:
    """One of its two machines is gone."""
    stage, one, two, server = scene
    two.netns.run("nft", "flush", "ruleset")
    server.zone["db.example", A] = ["127.0.0.9", two.netns.address]
    with echo_app(two.netns, 8080):
        for _ in range(20):
            assert ask(one.netns, VIP, 80, b"x") == b"x"
    stage.wait_log("connection attempt failed", "dst.addr=127.0.0.9:8080")


def test_unknown_name_is_an_error_that_names_the_endpoint(
    scene: tuple[Stage, Guest, Guest, Nameserver],
) -> None:
    """Negative twin."""
    stage, one, _, server = scene
    server.zone.clear()
    assert ask(one.netns, VIP, 80, b"x") == b""
    stage.wait_log("no ip addresses were resolved for workload: named")
