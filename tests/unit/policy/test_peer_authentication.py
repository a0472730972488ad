"""PeerAuthentication: precedence, inheritance and port exceptions (istio-facts 5.7)."""

from __future__ import annotations

import ipaddress

import pytest
import yaml

from metalmesh.model.identity import SpiffeId
from metalmesh.model.resources import ParsedObject, PeerAuthentication, parse_object
from metalmesh.policy.l4 import Connection, evaluate
from metalmesh.policy.peer_authentication import (
    convert_peer_authentication,
    inherits_strict,
    peer_authentication_keys,
    strict_authorization,
)

ROOT = "istio-system"
STRICT = f"{ROOT}/istio_converted_static_strict"
LABELS = {"app": "echo"}


def _policy(text: str) -> PeerAuthentication:
    """``NAMESPACE/NAME [selected] MODE [PORT=MODE...]``."""
    key, *words = text.split()
    namespace, name = key.split("/")
    spec: dict = {}
    if words[0] == "selected":
        spec["selector"] = {"matchLabels": LABELS}
        words = words[1:]
    spec["mtls"] = {"mode": words[0]}
    if words[1:]:
        pairs = (word.split("=") for word in words[1:])
        spec["portLevelMtls"] = {port: {"mode": mode} for port, mode in pairs}
    data = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace},
        "spec": yaml.safe_load(yaml.safe_dump(spec)),
    }
    (found,) = parse_object(data, "f")
    assert isinstance(found, ParsedObject), found
    assert isinstance(found.resource, PeerAuthentication)
    return found.resource


def _converted(name: str) -> str:
    return f"demo/converted_peer_authentication_{name}"


TABLE = [
    # (policies, oldest first) -> what the workload demo/echo lists
    ([], []),
    (["istio-system/m STRICT"], [STRICT]),
    (["istio-system/m PERMISSIVE"], []),
    (["istio-system/m UNSET"], []),
    (["demo/n STRICT"], [STRICT]),
    (["other/n STRICT"], []),
    (["istio-system/m STRICT", "demo/n PERMISSIVE"], []),
    (["istio-system/m STRICT", "demo/n DISABLE"], []),
    (["istio-system/m STRICT", "demo/n UNSET"], [STRICT]),
    (["istio-system/m PERMISSIVE", "demo/n STRICT"], [STRICT]),
    (["demo/n PERMISSIVE", "istio-system/m STRICT"], []),
    (["demo/n STRICT", "demo/w selected PERMISSIVE"], []),
    (["demo/n STRICT", "demo/w selected DISABLE"], []),
    (["demo/n PERMISSIVE", "demo/w selected STRICT"], [STRICT]),
    (["demo/n STRICT", "demo/w selected UNSET"], [STRICT]),
    (["istio-system/m STRICT", "demo/w selected UNSET"], [STRICT]),
    (["istio-system/m STRICT", "demo/n PERMISSIVE", "demo/w selected UNSET"], []),
    # a selector in the root namespace never counts
    (["istio-system/w selected STRICT"], []),
    # the oldest of a level wins
    (["demo/old STRICT", "demo/new PERMISSIVE"], [STRICT]),
    (["demo/old PERMISSIVE", "demo/new STRICT"], []),
    (["demo/old selected STRICT", "demo/new selected PERMISSIVE"], [STRICT]),
    (["istio-system/old UNSET", "istio-system/new STRICT"], []),
    # ports
    (["demo/w selected STRICT 80=PERMISSIVE"], [_converted("w")]),
    (["demo/w selected STRICT 80=DISABLE 81=STRICT"], [_converted("w")]),
    (["demo/w selected STRICT 80=STRICT"], [STRICT]),
    (["demo/w selected STRICT 80=UNSET"], [STRICT]),
    (["demo/w selected PERMISSIVE 80=STRICT"], [_converted("w")]),
    (["demo/w selected DISABLE 80=STRICT"], [_converted("w")]),
    (["demo/w selected PERMISSIVE 80=PERMISSIVE"], []),
    (["demo/w selected PERMISSIVE 80=UNSET"], []),
    (["demo/w selected UNSET 80=STRICT"], [_converted("w")]),
    (["demo/w selected UNSET 80=PERMISSIVE"], []),
    (["istio-system/m STRICT", "demo/w selected UNSET 80=PERMISSIVE"], [_converted("w")]),
    (["istio-system/m STRICT", "demo/w selected UNSET 80=STRICT"], [STRICT]),
    (["istio-system/m STRICT", "demo/w selected PERMISSIVE 80=STRICT"], [_converted("w")]),
]


@pytest.mark.parametrize("case", TABLE, ids=[", ".join(row[0]) or "none" for row in TABLE])
def test_workload_lists_what_is_in_force(case: tuple[list[str], list[str]]) -> None:
    policies = [_policy(text) for text in case[0]]
    assert list(peer_authentication_keys(policies, ROOT, "demo", LABELS)) == case[1]


def test_selector_of_another_workload_does_not_count() -> None:
    policies = [_policy("demo/w selected STRICT")]
    assert peer_authentication_keys(policies, ROOT, "demo", {"app": "other"}) == ()


def test_policy_of_the_root_namespace_also_holds_in_it() -> None:
    policies = [_policy("istio-system/m STRICT")]
    assert inherits_strict(policies, ROOT, ROOT)
    assert peer_authentication_keys(policies, ROOT, ROOT, LABELS) == (STRICT,)


def _denies(policy: object, port: int, *, identity: bool) -> bool:
    connection = Connection(
        source_ip=ipaddress.ip_address("10.0.0.1"),
        destination_ip=ipaddress.ip_address("10.0.0.2"),
        destination_port=port,
        identity=SpiffeId("td", "ns", "sa") if identity else None,
    )
    return not evaluate([policy], connection).allowed


PORTS = [
    ("demo/w selected STRICT 80=PERMISSIVE 81=DISABLE", False, {80: False, 81: False, 82: True}),
    ("demo/w selected PERMISSIVE 80=STRICT 81=STRICT", False, {80: True, 81: True, 82: False}),
    ("demo/w selected UNSET 80=PERMISSIVE", True, {80: False, 82: True}),
    ("demo/w selected UNSET 80=STRICT", False, {80: True, 82: False}),
]


@pytest.mark.parametrize("case", PORTS, ids=[row[0] for row in PORTS])
def test_converted_policy_refuses_plaintext_where_it_is_strict(
    case: tuple[str, bool, dict[int, bool]],
) -> None:
    text, inherited, expected = case
    policy = convert_peer_authentication(_policy(text), inherited=inherited)
    assert policy is not None
    assert {port: _denies(policy, port, identity=False) for port in expected} == expected
    assert not any(_denies(policy, port, identity=True) for port in expected)


def test_static_policy_refuses_exactly_those_without_identity() -> None:
    policy = strict_authorization(ROOT)
    assert policy.key == STRICT
    assert _denies(policy, 80, identity=False)
    assert not _denies(policy, 80, identity=True)
