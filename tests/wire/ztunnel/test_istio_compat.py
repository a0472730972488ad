"""``istio_compat``: every deviation in force, and switched back, on one and the same wire."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from metalmesh.model.authorization import Action, Authorization, PolicyScope
from metalmesh.model.compat import Deviation
from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from metalmesh.model.resources import ParsedObject, parse_object
from metalmesh.policy.translate import translate_authorization
from tests.support.apps import LongConnection, ask, echo_app
from tests.support.waits import WAITS, wait_until
from tests.support.ztunnel_stage import Guest, Stage

pytestmark = pytest.mark.root
PORT = 8080
BOTH = pytest.mark.parametrize("compat", [False, True], ids=["ours", "istios"])


def start(stage: Stage, deviation: Deviation | None) -> tuple[Guest, Guest]:
    """Two workloads of a ztunnel with one deviation, or none, switched back."""
    stage.settings["istio_compat"] = [deviation.value] if deviation else []
    one, two = stage.add_guest(), stage.add_guest()
    stage.plane.set(one.workload, two.workload)
    stage.plane.start()
    stage.start()
    stage.snapshot(one, two)
    stage.wait_ready()
    return one, two


def reachable(one: Guest, two: Guest) -> bool:
    """Whether an exchange works."""
    return ask(one.netns, two.netns.address, PORT, b"x") == b"x"


def translated(text: str, compat: frozenset[Deviation], **metadata: object) -> Authorization:
    """What the control plane serves of an AuthorizationPolicy."""
    body = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "tried", "namespace": "shop", **metadata},
        "spec": yaml.safe_load(text),
    }
    (found,) = parse_object(body, "f")
    assert isinstance(found, ParsedObject)
    policy = translate_authorization(found.resource, "istio-system", compat)
    assert policy.authorization is not None
    return policy.authorization


def known(stage: Stage, key: str) -> None:
    """Wait until a workload is known to list the policy."""
    wait_until(
        lambda: any(key in w["authorizationPolicies"] for w in stage.dump()["workloads"]),
        WAITS["policy"],
        what="attachment arrived",
    )


@BOTH
def test_missing_policy(stage: Stage, compat: bool) -> None:
    """Ours holds the connection; Istio's way serves it as if nothing were listed."""
    one, two = start(stage, Deviation.MISSING_POLICY if compat else None)
    stage.plane.set(replace(two.workload, authorization_policies=("shop/never",)))
    known(stage, "shop/never")
    with echo_app(two.netns, PORT) as app:
        if compat:
            assert reachable(one, two)
            return
        with one.netns.connect(two.netns.address, PORT) as connection:
            connection.settimeout(0.5)
            connection.sendall(b"x")
            with pytest.raises(TimeoutError):
                connection.recv(1)
            assert app.callers == []


@BOTH
def test_policy_attachment(stage: Stage, compat: bool) -> None:
    """Ours ends connections the new policy forbids; Istio's way only refuses new ones."""
    one, two = start(stage, Deviation.POLICY_ATTACHMENT if compat else None)
    deny = Authorization(
        name="deny-all",
        namespace="shop",
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=((),),
    )
    stage.plane.set(deny)
    with (
        echo_app(two.netns, PORT),
        LongConnection(one.netns, two.netns.address, PORT) as connection,
    ):
        assert connection.echo(b"before") == b"before"
        stage.plane.set(replace(two.workload, authorization_policies=("shop/deny-all",)))
        wait_until(lambda: not reachable(one, two), WAITS["policy"], what="new ones refused")
        if compat:
            assert connection.echo(b"after") == b"after"
            stage.plane.set(replace(deny, rules=((), ())))
        assert connection.wait_closed(), "a change of the policy itself ends it either way"


@BOTH
def test_network_policy_ports(stage: Stage, compat: bool) -> None:
    """Ours asks NetworkPolicy about the port inside the tunnel; Istio's way does not."""
    one, two = start(stage, Deviation.NETWORK_POLICY_PORTS if compat else None)
    only_80 = CompiledNetworkPolicy(
        name="web-only",
        namespace="shop",
        selected=(SelectedWorkload(two.workload.uid, two.workload.addresses),),
        ingress=True,
        egress=False,
        ingress_rules=(PolicyRule(ports=(PolicyPort(Protocol.TCP, 80),)),),
    )
    with echo_app(two.netns, PORT):
        stage.plane.set(only_80)
        stage.plane.set(replace(two.workload, authorization_policies=("shop/marker",)))
        known(stage, "shop/marker")
        stage.plane.set(two.workload)
        if compat:
            wait_until(lambda: reachable(one, two), WAITS["traffic"], what="served")
        else:
            wait_until(lambda: not reachable(one, two), WAITS["policy"], what="port closed")


HTTP_DENY = "{action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}"
TRUST_DOMAIN = "{rules: [{from: [{source: {namespaces: [shop], trustDomains: [elsewhere]}}]}]}"


@BOTH
@pytest.mark.parametrize(
    ("deviation", "text"),
    [(Deviation.HTTP_DENY, HTTP_DENY), (Deviation.TRUST_DOMAINS, TRUST_DOMAIN)],
    ids=["http_deny", "trust_domains"],
)
def test_translation(stage: Stage, deviation: Deviation, text: str, compat: bool) -> None:
    """Switches of the control plane: ours refuses the caller, Istio's way lets it through."""
    one, two = start(stage, None)
    policy = translated(text, frozenset({deviation} if compat else ()))
    with echo_app(two.netns, PORT):
        stage.plane.set(policy)
        wait_until(
            lambda: "shop/tried" in {f"{p['namespace']}/{p['name']}" for p in policies(stage)},
            WAITS["policy"],
            what="policy arrived",
        )
        assert reachable(one, two) is compat


def policies(stage: Stage) -> list[dict[str, str]]:
    """What the ztunnel knows."""
    found: list[dict[str, str]] = stage.dump()["policies"]
    return found


def test_dry_run_is_logged_and_never_enforced(stage: Stage) -> None:
    """At info with the switch of Istio's AUTHZ_POLICY_INFO_LOGGING; its twin is enforced."""
    stage.settings["authz_policy_info_logging"] = True
    one, two = start(stage, None)
    text = "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}"
    dry = translated(text, frozenset(), annotations={"istio.io/dry-run": "true"})
    with echo_app(two.netns, PORT):
        stage.plane.set(dry)
        wait_until(
            lambda: reachable(one, two) and "dry-run: deny policy match" in stage.log(),
            WAITS["policy"],
            what="dry run noted",
        )
        line = stage.wait_log("dry-run: deny policy match")
        assert "info" in line
        assert "policy=shop/tried" in line
        stage.wait_log("rbac", "no allow policies, allow")
        assert reachable(one, two)
        stage.plane.set(replace(dry, dry_run=False))
        wait_until(lambda: not reachable(one, two), WAITS["policy"], what="its twin denies")
        # the change itself may have ended that one; this one meets the policy
        assert not reachable(one, two)
        stage.wait_log(
            "connection closed due to policy rejection: explicitly denied by: shop/tried"
        )


def test_verdicts_are_debug_lines_by_default(stage: Stage, pair: tuple[Guest, Guest]) -> None:
    one, two = pair
    with echo_app(two.netns, PORT):
        assert reachable(one, two)
        one.netns.connect(two.netns.address, PORT).close()
    stage.wait_log("connection complete")
    assert "rbac" not in stage.log()


def test_plaintext_has_no_trust_domain(stage: Stage) -> None:
    """An ALLOW by trust domain admits the mesh's own and no plaintext."""
    one, two = start(stage, None)
    stage.plane.set(
        translated("{rules: [{from: [{source: {trustDomains: [cluster.local]}}]}]}", frozenset())
    )
    with echo_app(two.netns, PORT):
        wait_until(
            lambda: ask(stage.node, two.netns.address, PORT, b"x") == b"",
            WAITS["policy"],
            what="plaintext refused",
        )
        assert reachable(one, two)
        # the change itself may have ended the one before; this one meets the policy
        assert ask(stage.node, two.netns.address, PORT, b"x") == b""
    stage.wait_log(
        "error=",
        "connection closed due to policy rejection: allow policies exist, but none allowed",
    )
