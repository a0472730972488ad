"""``metalmesh node netns`` on a real kernel: what it makes, repairs, leaves alone and removes."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.mesh_node import MeshNode, fetch, mesh_node, serving

V4, V6 = "10.244.9.11", "fd44:9::11"
OTHER_V4, OTHER_V6 = "10.244.9.12", "fd44:9::12"


@pytest.fixture
def node():
    with mesh_node() as made:
        yield made


@pytest.fixture(scope="module")
def repaired():
    """One node for all repairs: each leaves it as it was, which is what they prove."""
    with mesh_node() as made:
        made.know(made.declare("w", V4, V6))
        made.up("w")
        yield made


def snapshot(node: MeshNode, name: str) -> list[str]:
    """Everything ``netns up`` is responsible for, handles included: a rebuilt rule shows."""
    inside = node.workload(name)
    return [
        inside.run("nft", "-a", "list", "ruleset"),
        inside.run("ip", "-d", "addr"),
        inside.run("ip", "route", "show", "table", "all"),
        inside.run("ip", "-6", "route", "show", "table", "all"),
        inside.run("ip", "rule"),
        inside.run("ip", "-6", "rule"),
        node.netns.run("nft", "-a", "list", "ruleset"),
        *(
            "\n".join(line for line in node.netns.run("ip", *words).splitlines() if "mmw" in line)
            for words in (["-o", "addr"], ["route"], ["-6", "route"])
        ),
    ]


def hello(name: str):
    return lambda peer: f"{name} saw {peer.getpeername()[0]}".encode()


def test_up_makes_a_reachable_netns_for_both_families(node):
    workload = node.declare("plain", V4, V6, labels={"istio.io/dataplane-mode": "none"})
    node.know(workload)
    node.up("plain")
    inside = node.workload("plain", V4)
    for address, source in ((V4, "198.18.0.2"), (V6, "fd18::2")):
        with serving(
            lambda a=address: (
                inside.listen(8080, address=a)
                if ":" not in a
                else inside.do(lambda: _listen6(a, 8080))
            ),
            hello("plain"),
        ):
            assert fetch(node.outside, address, 8080) == f"plain saw {source}"


def _listen6(address: str, port: int):
    import socket

    return socket.create_server((address, port), family=socket.AF_INET6)


def test_uncaptured_workload_has_no_rules(node):
    node.declare("plain", V4, labels={"istio.io/dataplane-mode": "none"})
    node.up("plain")
    assert node.nft("list", "ruleset", inside="plain") == ""
    assert "32764" not in node.workload("plain").run("ip", "rule")


def test_second_up_changes_nothing(node):
    node.know(node.declare("w", V4, V6))
    node.up("w")
    before = snapshot(node, "w")
    assert node.up("w") == f"{node.unique}-w: unchanged\n"
    assert snapshot(node, "w") == before


@pytest.mark.parametrize(
    ("damage", "inside"),
    [
        (["nft", "delete", "table", "inet", "istio-ambient-nat"], True),
        (["nft", "flush", "chain", "inet", "istio-ambient-mangle", "istio-output"], True),
        (["nft", "add", "rule", "inet", "istio-ambient-nat", "istio-output", "accept"], True),
        (["nft", "insert", "rule", "inet", "istio-ambient-nat", "istio-output", "accept"], True),
        (["nft", "add", "chain", "inet", "istio-ambient-nat", "foreign"], True),
        (["nft", "add", "table", "inet", "istio-ambient-raw"], True),
        (["ip", "rule", "del", "priority", "32764"], True),
        (["ip", "-6", "rule", "del", "priority", "32764"], True),
        (["ip", "route", "flush", "table", "100"], True),
        (["ip", "route", "del", "default"], True),
        (["ip", "-6", "route", "del", "default"], True),
        (["ip", "addr", "del", f"{V4}/32", "dev", "eth0"], True),
        (["ip", "addr", "add", "10.9.9.9/24", "dev", "eth0"], True),
        (["ip", "link", "set", "eth0", "down"], True),
        (["ip", "link", "del", "eth0"], True),
        (["ip", "route", "del", V4], False),
        (["nft", "delete", "table", "inet", "metalmesh-policy"], False),
        (["nft", "flush", "set", "inet", "metalmesh-policy", "bound-v4"], False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_up_repairs_what_was_damaged(repaired, damage, inside):
    node = repaired
    wanted = [_without_handles(text) for text in snapshot(node, "w")]
    (node.workload("w") if inside else node.netns).run(*damage)
    assert [_without_handles(text) for text in snapshot(node, "w")] != wanted, "nothing damaged"
    assert "unchanged" not in node.up("w")
    assert [_without_handles(text) for text in snapshot(node, "w")] == wanted
    assert "unchanged" in node.up("w")


def _without_handles(text: str) -> list[str]:
    """Rules without their handles, devices without their indexes and counters."""
    lines = (line.partition(" # handle")[0] for line in text.splitlines())
    kept = [_tidy(line) for line in lines]
    return sorted(line for line in kept if line.strip() and "promiscuity" not in line)


def _tidy(line: str) -> str:
    import re

    line = re.sub(r"counter packets \d+ bytes \d+", "counter", line)
    line = re.sub(r"^\d+: ", "", line)
    line = re.sub(r"@if\d+", "@if", line)
    return re.sub(r"(qdisc \S+ )?state \S+ |<[^>]*>| expires \d+sec", "", line)


def test_changed_address_replaces_the_old_one(node):
    node.declare("w", V4)
    node.up("w")
    node.know(node.declare("w", OTHER_V4, labels={"istio.io/dataplane-mode": "none"}))
    node.up("w")
    text = node.workload("w").run("ip", "-4", "addr", "show", "dev", "eth0")
    assert OTHER_V4 in text
    assert V4 not in text
    assert V4 not in node.netns.run("ip", "route")
    assert "istio-ambient" not in node.nft("list", "ruleset", inside="w")


def test_down_leaves_nothing(node):
    before = [node.netns.run("ip", "addr"), node.netns.run("ip", "route")]
    node.declare("w", V4, V6)
    node.up("w")
    node.down("w")
    assert [node.netns.run("ip", "addr"), node.netns.run("ip", "route")] == before
    assert not node.workload("w").path.exists()
    assert node.state.records() == {}
    assert node.down("w") == f"{node.unique}-w: unchanged\n"


def test_list_shows_state_and_link(node):
    node.declare("w", V4)
    assert "declared" in node.netns_command("list")
    node.up("w")
    row = node.netns_command("list").splitlines()[1].split()
    assert row[0] == f"{node.unique}-w"
    assert row[1] == "up"
    assert row[2].startswith("mmw")
    assert row[3:] == [V4, "yes"]


def test_second_workload_with_the_same_address_is_refused_and_the_first_stays(node):
    node.declare("zeta", V4)
    node.up("zeta")
    node.declare("alpha", V4)
    with pytest.raises(RuntimeError, match=rf"{V4} belongs to workload {node.unique}/zeta") as info:
        node.up("alpha")
    assert f"WorkloadEntry {node.unique}/alpha" in str(info.value)
    assert node.up("zeta").endswith("unchanged\n")


def test_broken_neighbour_spec_does_not_hinder(node):
    node.declare("w", V4)
    (node.directory / "workloads" / "a-broken.yaml").write_text("kind: [")
    assert "redirection" in node.up("w")


def test_unknown_name_says_where_it_is_declared(node):
    with pytest.raises(RuntimeError, match="no valid WorkloadEntry with netns"):
        node.up("nobody")


def test_half_made_netns_of_a_crash_is_made_anew(node):
    node.declare("w", V4)
    node.workload("w").path.touch()
    node.up("w")
    assert V4 in node.workload("w").run("ip", "addr")


def test_netns_deleted_by_hand_while_in_use_is_replaced(node):
    """A process keeps the old namespace, and its veth, alive."""
    node.declare("w", V4)
    node.up("w")
    holder = node.workload("w").popen("cat", stdin=subprocess.PIPE)
    try:
        subprocess.run(["ip", "netns", "del", f"{node.unique}-w"], check=True)
        node.up("w")
        assert V4 in node.workload("w").run("ip", "addr")
        assert "unchanged" in node.up("w")
    finally:
        holder.communicate()


def test_ipv6_switched_off_leaves_no_way_around_capture():
    with mesh_node(ipv6=False) as node:
        node.declare("w", V4)
        node.up("w")
        inside = node.workload("w")
        assert "inet6" not in inside.run("ip", "addr")
        assert "ip6" not in inside.run("nft", "list", "ruleset")
