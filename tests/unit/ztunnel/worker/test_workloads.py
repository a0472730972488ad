"""Policies of a local workload: complete, or nothing is let in."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from metalmesh.errors import PolicyDeniedError
from metalmesh.model.authorization import (
    Action,
    Authorization,
    Match,
    MatchKind,
    PolicyScope,
    StringMatch,
)
from metalmesh.model.identity import parse_spiffe_id
from metalmesh.policy.l4 import Connection
from metalmesh.ztunnel import messages as m
from metalmesh.ztunnel.worker.logs import LogWriter
from metalmesh.ztunnel.worker.loop import Loop
from metalmesh.ztunnel.worker.workloads import Workload

OWN = "spiffe://cluster.local/ns/test/sa/server"
PEER = parse_spiffe_id("spiffe://cluster.local/ns/test/sa/client")
DENY_ALL = Authorization(
    name="d", namespace="test", scope=PolicyScope.NAMESPACE, action=Action.DENY, rules=((),)
).to_dict()
STRICT = Authorization(
    name="s",
    namespace="test",
    scope=PolicyScope.NAMESPACE,
    action=Action.DENY,
    rules=(((Match(not_principals=(StringMatch(MatchKind.PRESENCE),)),),),),
).to_dict()


class Judged:
    """An inbound connection."""

    def __init__(self, *, identity: bool = True, port: int = 80) -> None:
        ips = ip_address("10.0.0.1"), ip_address("10.0.0.2")
        self.subject = Connection(*ips, port, PEER if identity else None)
        self.tunneled = identity
        self.events: list[str] = []

    def refuse(self, error: str, flags: str) -> None:
        self.events.append(f"{error} {flags}")

    def admit(self) -> None:
        self.events.append("admit")


def workload(identity: str = OWN) -> Workload:
    message = m.AddWorkload(
        uid="u",
        name="server-1",
        namespace="test",
        service_account="server",
        identity=identity,
        addresses=("10.0.0.2", "FD00::2"),
        labels={"app": "x"},
    )
    return Workload(message, -1, LogWriter(Loop()))


def policies(*authorizations: dict, **more) -> m.Policies:
    return m.Policies(uid="u", authorizations=authorizations, **more)


def allowed(own: Workload, item: Judged) -> bool:
    try:
        own.judge(item.subject, tunneled=item.tunneled)
    except PolicyDeniedError:
        return False
    return True


def test_nothing_is_decidable_before_policies_and_identity() -> None:
    own = workload(identity="")
    assert not own.decidable
    own.set_policies(policies())
    assert not own.decidable
    own.update(
        m.UpdateWorkload(uid="u", name="n", namespace="t", service_account="s", identity=OWN)
    )
    assert own.decidable
    own.set_policies(policies(missing=("test/late",)))
    assert not own.decidable


def test_unreadable_identity_counts_as_none() -> None:
    assert workload(identity="spiffe://nonsense").identity is None


def test_addresses_are_canonical_and_the_principal_is_our_own() -> None:
    own = workload()
    assert own.addresses == {"10.0.0.2", "fd00::2"}
    assert own.party.labels == {"app": "x", "principal": OWN}


def test_change_refuses_what_is_open_and_decides_what_waits() -> None:
    own = workload()
    own.set_policies(policies())
    plain, tunneled, waiting = Judged(identity=False), Judged(), Judged()
    for item in (plain, tunneled, waiting):
        own.inbound[item] = None
    own.undecided[waiting] = None
    own.set_policies(policies(STRICT))
    assert plain.events == ["connection closed due to policy change DENY"]
    assert tunneled.events == []
    assert waiting.events == ["admit"]
    assert not own.undecided


def test_verdicts_are_not_remembered_across_changes() -> None:
    own = workload()
    own.set_policies(policies())
    assert allowed(own, Judged())
    own.set_policies(policies(DENY_ALL))
    assert not allowed(own, Judged())
    own.set_policies(policies())
    assert allowed(own, Judged())


def test_missing_policies_leave_open_connections_alone() -> None:
    own = workload()
    own.set_policies(policies())
    item = Judged()
    own.inbound[item] = None
    own.set_policies(policies(DENY_ALL, missing=("test/late",)))
    assert item.events == []
    assert own.undecided_verdict()[0] == "401"
    own.set_policies(policies(DENY_ALL))
    assert item.events == ["connection closed due to policy change DENY"]


@pytest.mark.parametrize("bad", [{"authorizations": ({"x": 1},)}, {"network_policies": ({},)}])
def test_unreadable_policies_let_nobody_in(bad: dict) -> None:
    """A bug between main and worker must not fall back to what was before."""
    own = workload()
    own.set_policies(policies())
    with pytest.raises(Exception):  # noqa: B017 - whatever the parser raises
        own.set_policies(m.Policies(uid="u", **bad))
    assert not own.decidable
    assert own.undecided_verdict()[0] == "503"
