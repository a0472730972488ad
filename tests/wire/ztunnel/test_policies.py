"""Policies as they arrive at a running ztunnel: at once, late, never."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest

from metalmesh.constants import TYPE_AUTHORIZATION, TYPE_NETWORK_POLICY
from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    StringMatch,
)
from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from tests.support.apps import ask, echo_app
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage

pytestmark = pytest.mark.root
PORT = 8080
Pair = tuple[Guest, Guest]

DENY_ONE = Authorization(
    name="deny-one",
    namespace="shop",
    scope=PolicyScope.WORKLOAD_SELECTOR,
    action=Action.DENY,
    rules=(
        ((Match(principals=(StringMatch(MatchKind.EXACT, "cluster.local/ns/shop/sa/sa1"),)),),),
    ),
)
IN_NAMESPACE = replace(DENY_ONE, scope=PolicyScope.NAMESPACE)


def reachable(one: Guest, two: Guest) -> bool:
    """Whether an exchange works."""
    try:
        return ask(one.netns, two.netns.address, PORT, b"x") == b"x"
    except OSError:
        return False


def ended(connection: socket.socket) -> bool:
    """Whether the connection was closed, this way or that."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_policy_is_in_force_within_a_second_and_ends_open_connections(
    stage: Stage, pair: Pair
) -> None:
    """The bound of the change, on one node; the text of istio-facts 5.6."""
    one, two = pair
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        started_at = time.monotonic()
        stage.plane.set(IN_NAMESPACE)
        connection.settimeout(5)
        assert ended(connection)
        assert time.monotonic() - started_at < 1.0
        assert not reachable(one, two)
        stage.wait_log("connection closed due to policy change")
        stage.wait_log(
            "connection closed due to policy rejection: explicitly denied by: shop/deny-one"
        )
        stage.plane.remove(TYPE_AUTHORIZATION, "shop/deny-one")
        wait_until(lambda: reachable(one, two), WAITS["policy"], what="policy gone")


def test_attaching_a_policy_ends_open_connections_too(stage: Stage, pair: Pair) -> None:
    """Beyond Istio, on purpose: a change of labels counts like a change of the policy."""
    one, two = pair
    stage.plane.set(DENY_ONE)
    with echo_app(two.netns, PORT), one.netns.connect(two.netns.address, PORT) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        stage.plane.set(replace(two.workload, authorization_policies=("shop/deny-one",)))
        connection.settimeout(5)
        assert ended(connection)


def test_listed_but_unknown_policy_holds_connections_until_it_arrives(
    stage: Stage, pair: Pair
) -> None:
    """A missing policy never widens access; here it turns out to concern somebody else."""
    one, two = pair
    harmless = replace(DENY_ONE, name="late", rules=())
    stage.plane.set(replace(two.workload, authorization_policies=("shop/late",)))
    wait_until(
        lambda: any("shop/late" in w["authorizationPolicies"] for w in stage.dump()["workloads"]),
        WAITS["policy"],
        what="attachment arrived",
    )
    with echo_app(two.netns, PORT) as app, one.netns.connect(two.netns.address, PORT) as connection:
        connection.sendall(b"x")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert app.callers == []
        stage.plane.set(harmless)
        connection.settimeout(5)
        assert connection.recv(1) == b"x"


def test_policy_that_never_arrives_denies(stage: Stage, pair: Pair) -> None:
    one, two = pair
    stage.plane.set(replace(two.workload, authorization_policies=("shop/never",)))
    wait_until(
        lambda: any("shop/never" in w["authorizationPolicies"] for w in stage.dump()["workloads"]),
        WAITS["policy"],
        what="attachment arrived",
    )
    with echo_app(two.netns, PORT) as app, one.netns.connect(two.netns.address, PORT) as connection:
        connection.settimeout(WAITS["traffic"].seconds)
        assert ended(connection)
        assert app.callers == []
    stage.wait_log("policy not known yet: shop/never")


def test_network_policy_holds_inside_the_tunnel(stage: Stage, pair: Pair) -> None:
    """15008 is open on the wire; the inner port is decided by the same policy (DESIGN 3)."""
    one, two = pair
    selected = (SelectedWorkload(two.workload.uid, two.workload.addresses),)
    only_80 = CompiledNetworkPolicy(
        name="web-only",
        namespace="shop",
        selected=selected,
        ingress=True,
        egress=False,
        ingress_rules=(PolicyRule(ports=(PolicyPort(Protocol.TCP, 80),)),),
    )
    with echo_app(two.netns, PORT), echo_app(two.netns, 80):
        assert reachable(one, two)
        stage.plane.set(only_80)
        wait_until(lambda: not reachable(one, two), WAITS["policy"], what="port closed")
        # the change itself may have ended the one before; this one meets the policy
        assert not reachable(one, two)
        assert ask(one.netns, two.netns.address, 80, b"x") == b"x"
        stage.wait_log("no ingress rule of NetworkPolicy shop/web-only admits tcp/8080")
        stage.plane.remove(TYPE_NETWORK_POLICY, "shop/web-only")
        wait_until(lambda: reachable(one, two), WAITS["policy"], what="port open again")


def test_nothing_is_admitted_before_policies_have_been_received(stage: Stage) -> None:
    """A ztunnel that has just started must not take 'none yet' for 'none'."""
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload, IN_NAMESPACE)
    stage.start()
    stage.snapshot(one, two)
    with echo_app(two.netns, PORT) as app:
        outside: socket.socket = stage.node.connect(two.netns.address, PORT)
        with outside:
            outside.sendall(b"x")
            outside.settimeout(0.5)
            with pytest.raises(TimeoutError):
                outside.recv(1)
            assert app.callers == []
            stage.plane.start()
            outside.settimeout(10)
            assert outside.recv(1) == b"x", "the policy concerns sa1, not plaintext"
