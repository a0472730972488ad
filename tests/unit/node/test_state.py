"""The node's files: records, marks, policies; damage is said, not guessed around."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from metalmesh.errors import StoreError
from metalmesh.model.network_policy import (
    CompiledNetworkPolicy,
    Peer,
    PolicyPort,
    PolicyRule,
    Protocol,
    SelectedWorkload,
)
from metalmesh.node.state import NetnsRecord, NodeState, PolicyState

RECORD = NetnsRecord(
    netns="demo-w",
    uid="K/w",
    inode=7,
    link="mmw1",
    addresses=("10.1.1.1", "fd01::1"),
    captured=True,
    redirection="digest",
    tables={"t": "print"},
)
POLICY = CompiledNetworkPolicy(
    name="p",
    namespace="demo",
    selected=(SelectedWorkload("K/w", (ip_address("10.1.1.1"),)),),
    ingress=True,
    egress=False,
    ingress_rules=(
        PolicyRule(
            peers=(Peer(ip_network("10.0.0.0/8"), (ip_network("10.2.0.0/16"),)),),
            ports=(PolicyPort(Protocol.UDP, 53, 60),),
            only_uids=frozenset({"K/w"}),
        ),
    ),
)


@pytest.fixture
def state(tmp_path):
    return NodeState(tmp_path / "run", tmp_path / "state")


def test_record_comes_back_as_it_was_and_goes(state):
    state.write_record(RECORD)
    assert state.records() == {"demo-w": RECORD}
    assert state.running() == {"demo-w": ("K/w",)}
    state.delete_record("demo-w")
    state.delete_record("demo-w")
    assert state.records() == {}


def test_records_that_never_were_differ_from_records_that_vanished(state):
    assert state.records() == {}
    state.write_record(RECORD)
    state.netns_dir.rename(state.netns_dir.with_name("taken"))
    with pytest.raises(StoreError, match="has vanished; restart metalmesh-node"):
        state.records(must_exist=True)


def test_policies_survive_in_the_state_directory_alone(state, tmp_path):
    assert state.load_policies() is None
    saved = PolicyState((POLICY,), frozenset({"K/w"}))
    state.save_policies(saved)
    assert NodeState(tmp_path / "elsewhere", tmp_path / "state").load_policies() == saved


def test_unchanged_policies_are_not_written_again(state, tmp_path):
    path = tmp_path / "state" / "network-policies.json"
    state.save_policies(PolicyState((POLICY,), frozenset()))
    path.unlink()
    state.save_policies(PolicyState((POLICY,), frozenset()))
    assert not path.exists()
    state.save_policies(PolicyState((), frozenset()))
    assert path.exists()


def test_table_marks(state):
    state.write_table_mark("a", "digest", "print")
    state.write_table_mark("b", "digest", "print")
    assert set(state.table_marks()) == {"a", "b"}
    state.forget_table_marks()
    state.forget_table_marks()
    assert state.table_marks() == {}


def test_damaged_file_is_named_with_its_remedy(state, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "network-policies.json").write_text("{")
    with pytest.raises(StoreError, match=r"network-policies\.json cannot be read.*remove it"):
        state.load_policies()


def test_unwritable_directory_is_named(state, tmp_path):
    (tmp_path / "state").write_text("a file where the directory should be")
    with pytest.raises(StoreError, match=r"cannot be written.*disk full or read-only"):
        state.save_bytes("x", b"")


def test_lock_excludes_another_holder(state, tmp_path):
    import fcntl

    with (
        state.locked(),
        (tmp_path / "run" / "lock").open("w") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with state.locked():
        pass
