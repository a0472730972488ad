"""/etc/metalmesh/controlplane.yaml."""
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metalmesh.controlplane.config import parse_config
from metalmesh.errors import ConfigError

MINIMAL = {"component": "controlplane", "server_names": ["cp1"]}


def test_minimal_configuration_has_defaults() -> None:
    config = parse_config(MINIMAL, "f")
    assert (config.port, config.metrics_port, config.listen_address) == (15012, 15014, "::")
    assert config.root_namespace == "istio-system"
    assert config.compute_options.mesh.trust_domain == "cluster.local"


def test_everything_can_be_set() -> None:
    config = parse_config(
        MINIMAL
        | {
            "listen_address": "10.0.0.1", "port": 1, "metrics_port": 0, "store_dir": "/s",
            "ca_dir": "/c", "tokens_dir": "/t", "state_dir": "/x", "trust_domain": "td",
            "cluster_id": "c", "cluster_domain": "d", "root_namespace": "r",
            "service_cidrs": ["10.96.0.0/16", "fd00::/112"], "svid_ttl_seconds": 600,
            "svid_max_ttl_seconds": 1200, "node_token_ttl_seconds": 900,
            "log_level": "debug", "log_format": "json",
        },
        "f",
    )  # fmt: skip
    assert config.store_dir == Path("/s")
    assert len(config.compute_options.service_cidrs) == 2


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"component": "node"}, "f: component: is 'node', expected 'controlplane'"),
    ({"server_name": "x"}, "f: server_name: unknown key; did you mean server_names?"),
    ({"xyz": 1}, "f: xyz: unknown key; known are"),
    ({"server_names": []}, "f: server_names: must not be empty"),
    ({"server_names": "cp1"}, "f: server_names: must be a list of strings, got 'cp1'"),
    ({"port": "15012"}, "f: port: must be an integer, got '15012'"),
    ({"port": True}, "f: port: must be an integer, got True"),
    ({"port": 70000}, "f: port: must be 0 to 65535"),
    ({"store_dir": "store"}, "f: store_dir: must be an absolute path, got 'store'"),
    ({"listen_address": "everywhere"}, "f: listen_address: 'everywhere' does not appear to be"),
    ({"service_cidrs": ["10.96.0.1/16"]}, "f: service_cidrs: 10.96.0.1/16 has host bits set"),
    ({"svid_ttl_seconds": 5}, "f: svid_ttl_seconds: must be 60 to"),
    ({"svid_ttl_seconds": 900, "svid_max_ttl_seconds": 800}, "f: svid_ttl_seconds: must not exceed"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=[str(row[0]) for row in WRONG])
def test_fault_names_file_key_and_remedy(case: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL | case[0], "f")
    assert str(caught.value).startswith(case[1])


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="f: server_names: must be set"):
        parse_config({"component": "controlplane"}, "f")
