"""Kubernetes' isolation rules on compiled policies, and why they decided."""

from __future__ import annotations

import ipaddress

import pytest

from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from metalmesh.policy.network_policy import Endpoint, evaluate, evaluate_egress, evaluate_ingress

IP = ipaddress.ip_address
NET = ipaddress.ip_network
TCP, UDP = Protocol.TCP, Protocol.UDP

CLIENT = Endpoint(IP("10.0.0.1"), "client")
SERVER = Endpoint(IP("10.0.0.2"), "server")
LAN = Peer(NET("10.0.0.0/24"), (NET("10.0.0.9/32"),))


def _policy(
    name: str = "p",
    uids: tuple[str, ...] = ("server",),
    ingress: tuple[PolicyRule, ...] | None = (),
    egress: tuple[PolicyRule, ...] | None = None,
) -> CompiledNetworkPolicy:
    return CompiledNetworkPolicy(
        name=name,
        namespace="demo",
        selected=tuple(SelectedWorkload(uid, ()) for uid in uids),
        ingress=ingress is not None,
        egress=egress is not None,
        ingress_rules=ingress or (),
        egress_rules=egress or (),
    )


ANY = PolicyRule()
NOBODY = PolicyRule(peers=())
NO_PORT = PolicyRule(ports=())
FROM_LAN = PolicyRule(peers=(LAN,))
WEB = PolicyRule(ports=(PolicyPort(TCP, 80),))
RANGE = PolicyRule(ports=(PolicyPort(TCP, 8000, 8010),))
ALL_TCP = PolicyRule(ports=(PolicyPort(TCP),))
OTHERS_ONLY = PolicyRule(only_uids=frozenset({"somebody else"}))

INGRESS = [
    ("no policy", (), "10.0.0.1", TCP, 80, True),
    ("another workload's policy", (_policy(uids=("x",)),), "10.0.0.1", TCP, 80, True),
    (
        "egress policy isolates egress only",
        (_policy(ingress=None, egress=()),),
        "1.1.1.1",
        TCP,
        80,
        True,
    ),
    ("isolated without rules", (_policy(),), "10.0.0.1", TCP, 80, False),
    ("empty rule admits all", (_policy(ingress=(ANY,)),), "10.0.0.1", UDP, 53, True),
    ("no peers admit nobody", (_policy(ingress=(NOBODY,)),), "10.0.0.1", TCP, 80, False),
    ("no ports admit nothing", (_policy(ingress=(NO_PORT,)),), "10.0.0.1", TCP, 80, False),
    ("peer in the range", (_policy(ingress=(FROM_LAN,)),), "10.0.0.1", TCP, 80, True),
    ("mapped peer in the range", (_policy(ingress=(FROM_LAN,)),), "::ffff:10.0.0.1", TCP, 80, True),
    ("peer excepted", (_policy(ingress=(FROM_LAN,)),), "10.0.0.9", TCP, 80, False),
    ("peer outside", (_policy(ingress=(FROM_LAN,)),), "10.0.1.1", TCP, 80, False),
    ("peer of the other family", (_policy(ingress=(FROM_LAN,)),), "fd00::1", TCP, 80, False),
    ("port", (_policy(ingress=(WEB,)),), "10.0.0.1", TCP, 80, True),
    ("other port", (_policy(ingress=(WEB,)),), "10.0.0.1", TCP, 15008, False),
    ("other protocol", (_policy(ingress=(WEB,)),), "10.0.0.1", UDP, 80, False),
    ("range start", (_policy(ingress=(RANGE,)),), "10.0.0.1", TCP, 8000, True),
    ("range end", (_policy(ingress=(RANGE,)),), "10.0.0.1", TCP, 8010, True),
    ("past the range", (_policy(ingress=(RANGE,)),), "10.0.0.1", TCP, 8011, False),
    ("every port of a protocol", (_policy(ingress=(ALL_TCP,)),), "10.0.0.1", TCP, 1, True),
    ("not of the other", (_policy(ingress=(ALL_TCP,)),), "10.0.0.1", UDP, 1, False),
    ("rule for another workload", (_policy(ingress=(OTHERS_ONLY,)),), "10.0.0.1", TCP, 80, False),
    ("policies add up", (_policy("a"), _policy("b", ingress=(WEB,))), "10.0.0.1", TCP, 80, True),
]


@pytest.mark.parametrize("row", INGRESS, ids=[row[0] for row in INGRESS])
def test_ingress(row: tuple) -> None:
    _, policies, source, protocol, port, allowed = row
    verdict = evaluate_ingress(policies, "server", IP(source), protocol, port)
    assert verdict.allowed is allowed


def test_admission_names_policy_and_rule() -> None:
    policies = (_policy("a"), _policy("b", ingress=(NOBODY, WEB)))
    verdict = evaluate(policies, CLIENT, SERVER, TCP, 80)
    assert (verdict.direction, verdict.policy, verdict.rule) == ("ingress", "demo/b", 1)


def test_refusal_names_every_isolating_policy_and_the_traffic() -> None:
    policies = (_policy("a"), _policy("b", ingress=(WEB,)), _policy("c", uids=("x",)))
    verdict = evaluate(policies, CLIENT, SERVER, TCP, 15008)
    assert not verdict.allowed
    assert verdict.message == (
        "no ingress rule of NetworkPolicy demo/a, demo/b admits tcp/15008 from 10.0.0.1"
    )


def test_egress_is_decided_first_and_both_must_admit() -> None:
    closed_egress = _policy("out", uids=("client",), ingress=None, egress=())
    verdict = evaluate((closed_egress, _policy(ingress=())), CLIENT, SERVER, TCP, 80)
    assert (verdict.allowed, verdict.direction, verdict.policy) == (False, "egress", "demo/out")
    open_egress = _policy("out", uids=("client",), ingress=None, egress=(ANY,))
    verdict = evaluate((open_egress, _policy(ingress=())), CLIENT, SERVER, TCP, 80)
    assert (verdict.allowed, verdict.direction) == (False, "ingress")


def test_egress_compares_the_destination() -> None:
    policy = _policy("out", uids=("client",), ingress=None, egress=(FROM_LAN,))
    assert evaluate_egress((policy,), "client", IP("10.0.0.2"), TCP, 80).allowed
    verdict = evaluate_egress((policy,), "client", IP("8.8.8.8"), TCP, 53)
    assert verdict.message == "no egress rule of NetworkPolicy demo/out admits tcp/53 to 8.8.8.8"
