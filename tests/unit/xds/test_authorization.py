"""L4 policies on the wire."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import ProtocolError
from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
)
from metalmesh.proto import authorization_pb2 as pb
from metalmesh.xds.authorization import decode_authorization, encode_authorization

STRINGS = st.one_of(
    st.builds(
        StringMatch,
        st.sampled_from([MatchKind.EXACT, MatchKind.PREFIX, MatchKind.SUFFIX]),
        st.text(min_size=1, max_size=12),
    ),
    st.just(StringMatch(MatchKind.PRESENCE)),
)
NETWORKS = st.sampled_from(
    [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "192.0.2.1/32", "fd00::/64", "::/0")]
)
PORTS = st.integers(0, 65535)
ACCOUNTS = st.builds(ServiceAccountMatch, st.text(max_size=8), st.text(max_size=8))


def _tuples(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(strategy, max_size=2).map(tuple)


MATCHES = st.builds(
    Match,
    namespaces=_tuples(STRINGS),
    not_namespaces=_tuples(STRINGS),
    principals=_tuples(STRINGS),
    not_principals=_tuples(STRINGS),
    source_ips=_tuples(NETWORKS),
    not_source_ips=_tuples(NETWORKS),
    destination_ips=_tuples(NETWORKS),
    not_destination_ips=_tuples(NETWORKS),
    destination_ports=_tuples(PORTS),
    not_destination_ports=_tuples(PORTS),
    service_accounts=_tuples(ACCOUNTS),
    not_service_accounts=_tuples(ACCOUNTS),
)
POLICIES = st.builds(
    Authorization,
    name=st.text(min_size=1, max_size=8),
    namespace=st.text(max_size=8),
    scope=st.sampled_from(PolicyScope),
    action=st.sampled_from(Action),
    rules=_tuples(_tuples(_tuples(MATCHES))),
    dry_run=st.booleans(),
)


@given(POLICIES)
def test_any_policy_survives_the_wire(policy: Authorization) -> None:
    """Empty rules, clauses and matches have different meanings and must stay apart."""
    assert decode_authorization(encode_authorization(policy), policy.key) == policy


def _policy(match: pb.Match) -> bytes:
    rule = pb.Rule(clauses=[pb.Clause(matches=[match])])
    return pb.Authorization(name="p", namespace="n", rules=[rule]).SerializeToString()


REFUSED = {
    "address of 5 bytes": (
        _policy(pb.Match(source_ips=[pb.Address(address=b"12345", length=8)])),
        r"rules\[0\].clauses\[0\].matches\[0\].source_ips: an address has 4 or 16 bytes",
    ),
    "prefix too long": (
        _policy(pb.Match(not_destination_ips=[pb.Address(address=b"1234", length=64)])),
        "not_destination_ips: a prefix length is at most 32",
    ),
    "port of 17 bits": (_policy(pb.Match(destination_ports=[65536])), "destination_ports.*65536"),
    "string match without kind": (
        _policy(pb.Match(principals=[pb.StringMatch()])),
        "principals: a string match without",
    ),
    "unknown scope": (
        pb.Authorization(name="p", scope=3).SerializeToString(),  # type: ignore[arg-type]
        "scope: unknown value 3",
    ),
    "unknown action": (
        pb.Authorization(name="p", action=2).SerializeToString(),  # type: ignore[arg-type]
        "action: unknown value 2",
    ),
    "no name": (pb.Authorization(namespace="n").SerializeToString(), "name: must not be empty"),
    "not protobuf": (b"\xff\xff", "not a istio.security.Authorization message"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_malformed_policy_is_refused_naming_resource_and_field(case: tuple[bytes, str]) -> None:
    """A policy that cannot be read whole must not be read in part: that may widen access."""
    with pytest.raises(ProtocolError, match=f"^n/p: .*{case[1]}"):
        decode_authorization(case[0], "n/p")


@given(st.binary(max_size=120))
def test_only_protocol_errors_escape_the_decoder(data: bytes) -> None:
    message = "name: "
    try:
        decode_authorization(data, "name")
    except ProtocolError as error:
        message = str(error)
    assert message.startswith("name: ")
