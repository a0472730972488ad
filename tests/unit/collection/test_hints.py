"""Hints about policies that block the mesh itself."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.metalmesh.ambient.plugins.module_utils import _hints

from metalmesh.constants import PORT_HBONE


def policy(*ingress: Any) -> dict[str, Any]:
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "demo"},
        "spec": {"podSelector": {}, "ingress": list(ingress)},
    }


def test_policy_that_forgets_hbone_is_pointed_out() -> None:
    [hint] = _hints.hbone_hints([policy({"ports": [{"port": 8080}]})])
    assert "NetworkPolicy demo/web admits ingress on 8080 but not on 15008" in hint


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [{}],
        [{"from": [{"podSelector": {}}]}],
        [{"ports": [{"port": 8080}, {"port": 15008}]}],
        [{"ports": [{"port": 8080}]}, {"ports": [{"port": 15008}]}],
        [{"ports": [{"port": 15000, "endPort": 16000}]}],
        [{"ports": [{"protocol": "TCP"}]}],
        [{"ports": [{"port": 53, "protocol": "UDP"}]}],
    ],
)
def test_policy_that_admits_it_or_lists_no_tcp_port_is_not(rules: list[Any]) -> None:
    assert _hints.hbone_hints([policy(*rules)]) == []


def test_other_kinds_are_none_of_its_business() -> None:
    assert _hints.hbone_hints([{"kind": "Service", "spec": {"ports": [{"port": 80}]}}, None]) == []


def test_port_is_the_one_of_the_mesh() -> None:
    assert _hints.PORT_HBONE == PORT_HBONE
