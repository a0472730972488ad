"""What the status of policies says besides AuthorizationPolicy (that: policy/test_translate.py)."""

from __future__ import annotations

import pytest
import yaml

from metalmesh.controlplane.conditions import of_peer_authentications
from metalmesh.model.resources import ParsedObject, parse_object


def peer(name: str, namespace: str, spec: str) -> object:
    body = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace},
        "spec": yaml.safe_load(spec),
    }
    (found,) = parse_object(body, "f")
    assert isinstance(found, ParsedObject), found
    return found.resource


STRICT = "{mtls: {mode: STRICT}}"
ONE = "{selector: {matchLabels: {a: b}}}"
ROWS = [
    ("mesh", "istio-system", STRICT, True, "Accepted", "attached to ztunnel"),
    ("second", "istio-system", STRICT, False, "Conflicted", "istio-system/mesh is older"),
    (
        "lost",
        "istio-system",
        "{selector: {matchLabels: {a: b}}}",
        False,
        "Invalid",
        "root namespace",
    ),
    ("own", "shop", "{mtls: {mode: DISABLE}}", True, "UnsupportedValue", "enforced as PERMISSIVE"),
    ("one", "shop", ONE, True, "Accepted", "attached to ztunnel"),
    (
        "port",
        "shop",
        "{selector: {matchLabels: {c: d}}, portLevelMtls: {'80': {mode: DISABLE}}}",
        True,
        "UnsupportedValue",
        "enforced as PERMISSIVE",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_peer_authentication_says_what_became_of_it(row: tuple) -> None:
    name, namespace, _, status, reason, words = row
    policies = [peer(*other[:3]) for other in ROWS]
    found = of_peer_authentications(policies, "istio-system")  # type: ignore[arg-type]
    (condition,) = found[f"PeerAuthentication {namespace}/{name}"]
    assert (condition.type, condition.status, condition.reason) == (
        "ZtunnelAccepted",
        status,
        reason,
    )
    assert words in condition.message
