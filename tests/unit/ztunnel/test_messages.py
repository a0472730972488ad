"""Messages between main and workers survive their wire form; strange ones are refused."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalmesh.errors import ProtocolError
from metalmesh.ztunnel import messages as m

ROUTE = m.Route(
    kind="hbone",
    service=m.ServiceRef("a.ns.svc.cluster.local", "a", "ns"),
    endpoints=(
        m.Endpoint(
            address="10.0.0.1:15008",
            authority="10.0.0.1:80",
            identities=("spiffe://cluster.local/ns/a/sa/b",),
            weight=3,
            workload={"name": "a"},
        ),
    ),
)
EXAMPLES = [
    m.Configure(log_level="debug"),
    m.AddWorkload(uid="u", name="n", namespace="ns", service_account="sa", addresses=("1.2.3.4",)),
    m.UpdateWorkload(uid="u", name="n", namespace="ns", service_account="sa", labels={"app": "x"}),
    m.RemoveWorkload(uid="u"),
    m.Certificate(identity="spiffe://t/ns/a/sa/b", chain_pem="c", key_pem="k", roots_pem="r"),
    m.Revocations(keys=("00ff", "01")),
    m.CertificateUnavailable(identity="i", error="e"),
    m.Policies(uid="u", authorizations=({"name": "p", "rules": []},), inner_enforcement=False),
    m.RouteReply(request_id=7, route=ROUTE),
    m.RouteReply(request_id=8, route=m.Route(kind="error", error="no", cacheable=False)),
    m.InvalidateRoutes(),
    m.SourceReply(request_id=1, labels={"name": "x"}),
    m.SourceReply(request_id=1),
    m.Collect(request_id=2, what="metrics"),
    m.Drain(deadline_seconds=25),
    m.SetLogLevel(level="debug"),
    m.Ping(request_id=4),
    m.Ready(pid=3),
    m.Ack(uid="u", error="no"),
    m.NeedCertificate(identity="i"),
    m.Resolve(request_id=1, uid="u", address="10.0.0.1", port=80),
    m.LookupSource(request_id=1, address="10.0.0.1"),
    m.MetricsReply(request_id=1, series=(("istio_x_total", {"reporter": "source"}, 2.0),)),
    m.ConnectionsReply(request_id=1, connections=({"uid": "u"},)),
    m.Pong(request_id=4),
    m.Drained(),
    m.Inherit(name="netns-1"),
    m.Begin(workloads=(("uid", "w", "ns", "sa", 4, 5),), environment={"A": "b"}),
    m.Prepared(),
    m.TakeOver(),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda x: type(x).__name__)
def test_message_survives_its_wire_form(message):
    assert m.decode(m.encode(message)) == message


def test_every_message_class_has_an_example():
    assert {type(x) for x in EXAMPLES} == set(m.Message.__args__)


def test_key_is_not_shown_by_repr():
    """A private key must not reach a log through an error message."""
    shown = repr(m.Certificate(identity="i", chain_pem="c", key_pem="SECRET"))
    assert "SECRET" not in shown


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"a":1}', "not a JSON object"),
        (b'{"type":"nonsense"}', "unknown type"),
        (b'{"type":["x"]}', "unknown type"),
        (b'{"type":"ready","colour":1}', "unknown field 'colour'"),
        (b'{"type":"resolve","request_id":1}', "missing"),
        (b'{"type":"ping","request_id":"x"}', "expected int"),
        (b'{"type":"route_reply","request_id":1,"route":3}', "expected an object"),
    ],
)
def test_strange_message_is_refused(data, complaint):
    with pytest.raises(ProtocolError, match=complaint):
        m.decode(data)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x), max_leaves=5))
def test_only_protocol_error_escapes(value):
    body = {"type": "route_reply", "request_id": 1, "route": {"kind": "tcp", "endpoints": value}}
    with contextlib.suppress(ProtocolError):
        m.decode(json.dumps(body).encode())
