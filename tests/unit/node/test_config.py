"""Settings of the node agent: defaults, conversions, and errors that name key and file."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from metalmesh.errors import ConfigError
from metalmesh.node.config import NodeConfig, parse_config

MINIMAL = {"component": "node", "node_name": "node1"}


def test_node_name_is_enough():
    assert parse_config(MINIMAL, "f") == NodeConfig(node_name="node1")


def test_values_get_their_types():
    config = parse_config(
        {
            **MINIMAL,
            "xds_address": "[fd77::11]:15012",
            "dns_address": "169.254.20.11",
            "dns_upstreams": ["192.0.2.1", "2001:db8::1"],
            "service_cidr": "10.97.0.0/16",
            "workloads_dir": "/w",
            "ipv6": False,
            "reconcile_interval_seconds": 3,
        },
        "f",
    )
    assert config.dns_address == IPv4Address("169.254.20.11")
    assert config.dns_upstreams == ("192.0.2.1", "2001:db8::1")
    assert config.service_cidr == IPv4Network("10.97.0.0/16")
    assert config.workloads_dir == Path("/w")
    assert config.reconcile_interval_seconds == 3.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"component": "ztunnel"}, ["component"]),
        ({"nodename": "x"}, ["unknown key 'nodename'", "node_name"]),
        ({"node_name": ""}, ["node_name"]),
        ({"node_name": 3}, ["node_name", "string"]),
        ({"xds_address": "10.0.0.1"}, ["xds_address", "HOST:PORT"]),
        ({"dns_address": "fd00::1"}, ["dns_address"]),
        ({"dns_upstreams": "10.0.0.1"}, ["dns_upstreams", "list"]),
        ({"dns_upstreams": ["resolver"]}, ["dns_upstreams", "resolver"]),
        ({"service_cidr": "10.96.0.1/16"}, ["service_cidr"]),
        ({"service_cidr": "fd00::/64"}, ["service_cidr", "IPv4"]),
        ({"workloads_dir": "workloads"}, ["workloads_dir", "absolute"]),
        ({"ipv6": "yes"}, ["ipv6", "true or false"]),
        ({"reconcile_interval_seconds": 0}, ["reconcile_interval_seconds"]),
        ({"port": 70000}, ["port"]),
        ({"port": True}, ["port"]),
    ],
)
def test_errors_name_file_key_and_what_is_expected(changes, words):
    with pytest.raises(ConfigError) as caught:
        parse_config({**MINIMAL, **changes}, "/etc/metalmesh/node.yaml")
    for word in ["/etc/metalmesh/node.yaml", *words]:
        assert word in str(caught.value)


def test_missing_node_name_is_named():
    with pytest.raises(ConfigError, match="node_name must be set"):
        parse_config({"component": "node"}, "f")


def test_what_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match="mapping"):
        parse_config(["component"], "f")
