"""The ztunnel's main process with real workers, sockets, rules and TLS: the good days."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from metalmesh.constants import (
    PORT_METRICS,
    PORT_ZTUNNEL_ADMIN,
    TYPE_ADDRESS,
    TYPE_AUTHORITY,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
)
from metalmesh.model.service import Service
from metalmesh.model.workload import NetworkAddress, Workload
from tests.support.apps import ask, echo_app
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage

pytestmark = pytest.mark.root
PORT = 8080
SPIFFE = "spiffe://cluster.local/ns/shop/sa"

Pair = tuple[Guest, Guest]


def test_two_workloads_of_a_node_talk_by_hbone(stage: Stage, pair: Pair) -> None:
    """Source address kept; both identities in the log; the same connection in the metrics."""
    one, two = pair
    with echo_app(two.netns, PORT) as app:
        assert ask(one.netns, two.netns.address, PORT, b"hello") == b"hello"
        assert app.callers == [one.netns.address]
    line = stage.wait_log("connection complete", 'direction="outbound"')
    assert f'src.identity="{SPIFFE}/sa1"' in line
    assert f'dst.identity="{SPIFFE}/sa2"' in line
    assert f"dst.addr={two.netns.address}:15008" in line
    assert f"dst.hbone_addr={two.netns.address}:{PORT}" in line
    stage.wait_log("connection complete", 'direction="inbound"')
    opened = [
        line
        for line in stage.metrics().splitlines()
        if line.startswith("istio_tcp_connections_opened_total{")
    ]
    assert len(opened) == 2
    for line in opened:
        assert f'source_principal="{SPIFFE}/sa1"' in line
        assert f'destination_principal="{SPIFFE}/sa2"' in line
        assert 'connection_security_policy="mutual_tls"' in line


def test_service_address_leads_to_an_endpoint(stage: Stage, pair: Pair) -> None:
    """Endpoints first, their service later: it is the route that is asked for anew."""
    one, two = pair
    key = "shop/echo.shop.svc.cluster.local"
    service = Service(
        name="echo",
        namespace="shop",
        hostname="echo.shop.svc.cluster.local",
        vips=(NetworkAddress("", ip_address("10.96.0.10")),),
        ports={80: PORT},
    )
    stage.plane.set(replace(two.workload, services={key: {}}))
    with echo_app(two.netns, PORT):
        stage.plane.set(service)

        def reached() -> bool:
            try:
                return ask(one.netns, "10.96.0.10", 80, b"x") == b"x"
            except OSError:
                return False

        wait_until(reached, WAITS["policy"], what="service reached")
    line = stage.wait_log('dst.service="echo.shop.svc.cluster.local"')
    assert 'direction="outbound"' in line


def test_readiness_names_what_is_missing(stage: Stage) -> None:
    """istio-facts 8.4; it goes back when the node agent is lost."""
    guest = stage.add_guest()
    stage.start()
    wait_until(lambda: stage.readiness()[0] == 500, WAITS["service"], what="readiness port")
    assert stage.readiness() == (
        500, "not ready, pending: state manager, workload proxy manager",
    )  # fmt: skip
    stage.plane.start()
    pending = (500, "not ready, pending: workload proxy manager")
    wait_until(lambda: stage.readiness() == pending, WAITS["service"], what="xDS synced")
    stage.snapshot(guest)
    stage.wait_ready()
    stage.agent.drop()
    wait_until(lambda: stage.readiness() == pending, WAITS["service"], what="agent lost")


def test_control_plane_hears_who_calls_and_gets_acknowledgements(stage: Stage, pair: Pair) -> None:
    """istio-facts 3.1 and 3.2."""
    del pair
    assert stage.plane.metadata[0]["authorization"] == "Bearer token-of-node1"
    assert stage.plane.metadata[0]["clusterid"] == "Kubernetes"
    first = stage.plane.requests[:4]
    assert [request.type_url for request in first] == [
        TYPE_ADDRESS, TYPE_AUTHORIZATION, TYPE_NETWORK_POLICY, TYPE_AUTHORITY,
    ]  # fmt: skip
    assert first[0].node.id.startswith("ztunnel~")
    assert first[0].node.metadata["NODE_NAME"] == "node1"
    answers = stage.plane.requests[4:]
    assert all(
        request.response_nonce and not request.HasField("error_detail") for request in answers
    )


def test_node_that_joins_late_is_served_at_once(stage: Stage) -> None:
    """A missing token is looked for every second, not after the backoff of a dead peer."""
    token = stage.directory / "token"
    text = token.read_text()
    token.unlink()
    guest = stage.add_guest()
    stage.plane.set(guest.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(guest)
    stage.wait_log("node token", "cannot be read", "has the node joined?")
    token.write_text(text)
    stage.wait_ready()
    assert stage.log().count("cannot be read") == 1, "one line, however long it takes"


def test_endpoint_with_a_name_is_reached(stage: Stage, pair: Pair) -> None:
    """istio-facts 6.3, by the node's own resolver (/etc/hosts knows localhost)."""
    one, _ = pair
    key = "shop/named.shop.svc.cluster.local"
    service = Service(
        name="named",
        namespace="shop",
        hostname="named.shop.svc.cluster.local",
        vips=(NetworkAddress("", ip_address("10.96.0.11")),),
        ports={80: 1},
    )
    named = Workload(
        uid="named", name="named", namespace="shop", hostname="localhost", services={key: {}}
    )
    stage.plane.set(service, named)
    # resources may come in any order, also one by one
    wait_until(lambda: stage.dump()["services"], WAITS["policy"], what="service arrived")
    wait_until(
        lambda: "named" in [item["uid"] for item in stage.dump()["workloads"]],
        WAITS["policy"],
        what="endpoint arrived",
    )
    assert ask(one.netns, "10.96.0.11", 80, b"x") == b"", "nothing listens on port 1"
    stage.wait_log("dst.addr=127.0.0.1:1", 'direction="outbound"')


def test_bad_resource_is_refused_by_name_and_the_rest_lives(stage: Stage, pair: Pair) -> None:
    one, two = pair
    stage.plane.set_bytes(TYPE_ADDRESS, "broken", b"\xff")
    wait_until(
        lambda: any(r.HasField("error_detail") for r in stage.plane.requests),
        WAITS["policy"],
        what="NACK",
    )
    (nack,) = [r for r in stage.plane.requests if r.HasField("error_detail")]
    assert nack.error_detail.message.startswith("broken: ")
    with echo_app(two.netns, PORT):
        assert ask(one.netns, two.netns.address, PORT, b"x") == b"x"


def test_certificates_are_requested_for_the_nodes_workloads_before_they_are_needed(
    stage: Stage,
) -> None:
    guest = stage.add_guest()
    stage.plane.set(guest.workload, replace(guest.workload, uid="elsewhere", node="node2",
                                            service_account="other", addresses=()))  # fmt: skip
    stage.plane.start()
    stage.start()
    wait_until(lambda: stage.plane.signed, WAITS["service"], what="certificate requested")
    assert stage.plane.signed == [f"{SPIFFE}/sa1"]
    (certificate,) = stage.dump()["certificates"]
    assert certificate["identity"] == f"{SPIFFE}/sa1"


def test_dump_shows_everything_and_no_secret(stage: Stage, pair: Pair) -> None:
    """istio-facts 8.3."""
    one, two = pair
    dump = stage.dump()
    assert [w["name"] for w in dump["workloads"]] == ["w1", "w2"]
    assert dump["workloads"][0]["workloadIps"] == [one.netns.address]
    assert dump["workloads"][0]["protocol"] == "HBONE"
    wait_until(
        lambda: {c["state"] for c in stage.dump()["certificates"]} == {"Available"},
        WAITS["workload"],
        what="certificates",
    )
    chain = stage.dump()["certificates"][0]["certChain"]
    assert set(chain[0]) == {"pem", "serialNumber", "validFrom", "expirationTime"}
    assert dump["workloadState"][two.workload.uid]["info"] == {
        "name": "w2", "namespace": "shop", "serviceAccount": "sa2",
    }  # fmt: skip
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as open_one:
        open_one.sendall(b"x")
        assert open_one.recv(1) == b"x"
        state = stage.dump()["workloadState"]
        (outbound,) = state[one.workload.uid]["connections"]["outbound"]
        assert outbound["originalDst"] == f"{two.netns.address}:{PORT}"
        (inbound,) = state[two.workload.uid]["connections"]["inbound"]
        assert inbound["protocol"] == "HBONE"
    assert "PRIVATE KEY" not in str(dump)


def test_admin_port_changes_the_log_level_and_stops_the_process(stage: Stage, pair: Pair) -> None:
    del pair
    for path in ("/logging", "/quitquitquit"):
        assert stage.get(PORT_ZTUNNEL_ADMIN, path)[0] == 405
    status, body = stage.get(PORT_ZTUNNEL_ADMIN, "/logging?level=debug", method="POST")
    assert (status, body) == (200, "current log level is debug\n")
    status, body = stage.get(PORT_ZTUNNEL_ADMIN, "/logging?level=loud", method="POST")
    assert status == 400
    assert "loud" in body
    assert stage.get(PORT_ZTUNNEL_ADMIN, "/nothing")[0] == 404
    assert stage.get(PORT_ZTUNNEL_ADMIN, "/quitquitquit", method="POST") == (200, "shutdown now\n")
    assert stage.process is not None
    assert stage.process.wait(10) == 0
    stage.process = None


def test_metrics_have_istios_names(stage: Stage, pair: Pair) -> None:
    del pair
    text = stage.metrics()
    for sample in (
        'istio_build{component="ztunnel",tag=',
        "workload_manager_active_proxy_count 2",
        "workload_manager_pending_proxy_count 0",
        "workload_manager_proxies_started_total 2",
        "workload_manager_proxies_stopped_total 0",
        f'istio_xds_message_total{{url="{TYPE_ADDRESS}"}}',
        f'istio_xds_message_bytes_total{{url="{TYPE_ADDRESS}"}}',
        "process_open_fds ",
        f'metalmesh_svid_expiry_seconds{{identity="{SPIFFE}/sa1"}} 86',
    ):
        assert sample in text, f"{sample} is missing in\n{text}"
    assert stage.get(PORT_METRICS, "/stats/prometheus")[0] == 200


def test_a_lost_control_plane_is_counted(stage: Stage, pair: Pair) -> None:
    """By reason, as ztunnel does; nothing is counted while the stream lives."""
    del pair
    name = "istio_xds_connection_terminations_total{reason="
    assert name not in stage.metrics()
    stage.plane.stop()
    wait_until(lambda: name in stage.metrics(), WAITS["metric"], what="the end of the stream")
