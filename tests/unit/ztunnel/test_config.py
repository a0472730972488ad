"""The ztunnel's configuration file: what is refused, and how the refusal reads."""

from __future__ import annotations

import pytest

from metalmesh.errors import ConfigError
from metalmesh.model.compat import EVERYTHING, NOTHING, Deviation
from metalmesh.ztunnel.config import ZtunnelConfig, parse_config

SOURCE = "/etc/metalmesh/ztunnel.yaml"
MINIMAL = {"component": "ztunnel", "node_name": "node1", "xds_address": "cp1:15012"}


def test_minimal_file_has_documented_defaults() -> None:
    config = parse_config(MINIMAL, SOURCE, {})
    assert config == ZtunnelConfig(node_name="node1", xds_address="cp1:15012")
    assert (config.workers, config.stop_deadline_seconds, config.drain_deadline_seconds) == (
        2,
        25,
        0,
    )
    assert config.secret_ttl_seconds == 24 * 3600
    assert config.network_policy_inner_enforcement


def test_every_value_is_taken() -> None:
    config = parse_config(
        {**MINIMAL, "workers": 4, "drain_deadline_seconds": 1, "access_log": False}, SOURCE, {}
    )
    assert (config.workers, config.drain_deadline_seconds, config.access_log) == (4, 1.0, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"component": "node"}, "component: must be 'ztunnel', is 'node'"),
        ({"wokers": 2}, "wokers: unknown key; the keys are access_log, "),
        ({"node_name": ""}, "node_name: is empty"),
        ({"node_name": 1}, "node_name: must be a text, is 1"),
        ({"workers": "2"}, "workers: must be a whole number, is '2'"),
        ({"workers": True}, "workers: must be a whole number, is True"),
        ({"workers": 0}, "workers: must be 1 to 64, is 0"),
        ({"access_log": "yes"}, "access_log: must be true or false, is 'yes'"),
        ({"istio_compat": ["http"]}, "istio_compat: knows no 'http'; the names are http_deny, "),
        ({"istio_compat": "all"}, "istio_compat: must be true, false or a list of names"),
        ({"drain_deadline_seconds": -1}, "drain_deadline_seconds: must not be negative"),
        ({"drain_deadline_seconds": "25s"}, "drain_deadline_seconds: must be a number"),
        ({"secret_ttl_seconds": 5}, "secret_ttl_seconds: must be at least 60"),
        ({"xds_address": "cp1"}, "xds_address: 'cp1' is not HOST:PORT"),
        ({"ca_address": "cp1:99999"}, "ca_address: 'cp1:99999' is not HOST:PORT"),
        ({"trust_domain_aliases": "x"}, "trust_domain_aliases: must be a list of texts, is 'x'"),
        ({"trust_domain_aliases": [1]}, "trust_domain_aliases: must be a list of texts, is [1]"),
        ({"trust_domain_aliases": ["a/b"]}, "trust_domain_aliases: trust domain 'a/b' must be"),
        ({"tls_keylog_path": "/tmp/keys"}, "tls_keylog_path: writes the secrets"),
    ],
)
def test_refusal_names_file_key_and_remedy(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config({**MINIMAL, **change}, SOURCE, {})
    assert str(refusal.value).startswith(f"{SOURCE}: {message}")


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="node_name: is missing"):
        parse_config({"component": "ztunnel", "xds_address": ""}, SOURCE, {})


def test_key_log_is_for_labs_only() -> None:
    values = {**MINIMAL, "tls_keylog_path": "/tmp/keys"}
    config = parse_config(values, SOURCE, {"METALMESH_LAB": "1"})
    assert config.tls_keylog_path == "/tmp/keys"
    with pytest.raises(ConfigError, match="METALMESH_LAB=1"):
        parse_config(values, SOURCE, {"METALMESH_LAB": "0"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, EVERYTHING),
        (False, NOTHING),
        (["missing_policy"], frozenset({Deviation.MISSING_POLICY})),
    ],
)
def test_istio_compat_is_a_list_or_everything(value: object, expected: object) -> None:
    assert parse_config({**MINIMAL, "istio_compat": value}, SOURCE, {}).istio_compat == expected
