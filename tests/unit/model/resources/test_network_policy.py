"""NetworkPolicy as Kubernetes defines it."""
# ruff: noqa: E501 - tables of one row per line read better than wrapped ones

from __future__ import annotations

from typing import Any

import pytest

from metalmesh.model.network_policy import Protocol


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ("podSelector: {}", True, False),
        ("podSelector: {}\negress: [{}]", True, True),
        ("podSelector: {}\negress: []", True, False),
        ("podSelector: {}\npolicyTypes: [Egress]", False, True),
        ("podSelector: {}\npolicyTypes: [Egress]\ningress: [{}]", False, True),
        ("podSelector: {}\npolicyTypes: [Ingress, Egress]", True, True),
    ],
)
def test_policy_types_default_as_in_kubernetes(
    read: Any, spec: str, ingress: bool, egress: bool
) -> None:
    """Ingress always; Egress when there are egress rules."""
    policy = read("NetworkPolicy", spec)
    assert (policy.ingress, policy.egress) == (ingress, egress)


def test_rules_peers_and_ports_are_read(read: Any) -> None:
    policy = read(
        "NetworkPolicy",
        "podSelector: {matchExpressions: [{key: app, operator: In, values: [a, b]}]}\ningress:\n"
        "- from:\n  - {podSelector: {}}\n  - {namespaceSelector: {}, podSelector: {matchLabels: {x: z}}}\n"
        "  - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}\n"
        "  ports: [{port: 80}, {protocol: UDP, port: dns}, {port: 8000, endPort: 8080}, {protocol: SCTP}]",
    )
    assert policy.selector.matches({"app": "b"})
    assert not policy.selector.matches({})
    (rule,) = policy.ingress_rules
    assert [(p.namespaces is None, p.workloads is None) for p in rule.peers] == [
        (True, False),
        (False, False),
        (True, True),
    ]
    assert [(p.protocol, p.port, p.end_port) for p in rule.ports] == [
        (Protocol.TCP, 80, 0),
        (Protocol.UDP, "dns", 0),
        (Protocol.TCP, 8000, 8080),
        (Protocol.SCTP, 0, 0),
    ]


INGRESS = "podSelector: {}\ningress: [{%s}]"
WRONG = [
    ("podSelector: {}\npolicyTypes: [ingress]", "spec.policyTypes[0]: must be Ingress or Egress, got 'ingress'"),
    ("podselector: {}", "spec.podselector: unknown field; did you mean podSelector?"),
    ("podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}", "spec.podSelector.matchExpressions[0].operator: must be one of In, NotIn, Exists, DoesNotExist, got 'in'"),
    ("podSelector: {matchExpressions: [{key: a, operator: In}]}", "spec.podSelector.matchExpressions[0].values: must not be empty for operator In"),
    ("podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}", "spec.podSelector.matchExpressions[0].values: must be absent for operator Exists"),
    ("podSelector: {matchLabels: {'-a': b}}", "spec.podSelector.matchLabels: label key '-a' must be [DNS prefix/]NAME, NAME at most 63"),
    (INGRESS % "from: [{}]", "spec.ingress[0].from[0]: must have ipBlock, podSelector or namespaceSelector"),
    (INGRESS % "from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]", "spec.ingress[0].from[0].ipBlock: cannot be combined with selectors in one peer; make it two peers"),
    (INGRESS % "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]", "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/16 must lie within 10.0.0.0/8"),
    (INGRESS % "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]", "spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/8 must lie within 10.0.0.0/8"),
    (INGRESS % "from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}]", "spec.ingress[0].from[0].ipBlock.except[0]: fd00::/16 must lie within 10.0.0.0/8"),
    (INGRESS % "ports: [{port: 80, endPort: 79}]", "spec.ingress[0].ports[0].endPort: must not be below port 80, got 79"),
    (INGRESS % "ports: [{endPort: 79}]", "spec.ingress[0].ports[0].endPort: needs a port to start from"),
    (INGRESS % "ports: [{port: http, endPort: 79}]", "spec.ingress[0].ports[0].endPort: needs a numeric port"),
    (INGRESS % "ports: [{port: '80'}]", "spec.ingress[0].ports[0].port: must be 1 to 65535 or a port name, got '80'"),
    (INGRESS % "ports: [{protocol: ICMP}]", "spec.ingress[0].ports[0].protocol: must be one of TCP, UDP, SCTP, got 'ICMP'"),
    (INGRESS % "to: []", "spec.ingress[0].to: unknown field; remove it"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=[row[0][-60:] for row in WRONG])
def test_fault_names_field_and_remedy(read: Any, case: tuple[str, str]) -> None:
    found = read("NetworkPolicy", case[0])
    assert isinstance(found, list), "accepted"
    assert case[1] in found
