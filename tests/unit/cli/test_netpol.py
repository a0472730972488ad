"""``metalmesh netpol`` on files: explained refusals whose remedy works, forgotten 15008, matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalmesh.cli.main import main
from tests.unit.cli.test_why import (
    DENY,
    ENTRIES,
    MESH,
    NAMED,
    NO_EGRESS,
    NO_HBONE,
    ONE,
    OTHER_INNER,
    entry,
    policy,
)

BASE = MESH + ENTRIES
CLOSED = policy("NetworkPolicy", "closed", "{podSelector: {matchLabels: {app: echo}}}")
#: admits the mesh from web alone
ONLY_WEB = policy(
    "NetworkPolicy",
    "web",
    "{podSelector: {matchLabels: {app: echo}}, ingress: [{from: [{podSelector: {matchLabels:"
    " {app: web}}}], ports: [{port: 15008}, {port: 8080}]}]}",
)
DNS = policy(
    "NetworkPolicy",
    "dns",
    "{podSelector: {matchLabels: {app: echo}}, ingress: [{ports: [{protocol: UDP, port: 53}]}]}",
)
CLOSED_EGRESS = NO_EGRESS + CLOSED


@pytest.fixture
def netpol(tmp_path, capsys):
    """Runs an action on resources; gives exit status and output."""

    def run(text: str, *arguments: str) -> tuple[int, str]:
        (tmp_path / "mesh.yaml").write_text(text)
        status = main(["netpol", *arguments, "--resources", str(tmp_path)])
        return status, capsys.readouterr().out

    return run


def explained(netpol: Any, text: str, source: str, destination: str) -> dict[str, Any]:
    status, out = netpol(text, "explain", source, destination, "-o", "json")
    found = json.loads(out)
    assert (status == 0) == (found["outcome"] not in {"denied", "unreachable"})
    return dict(found)


def changed(text: str, changes: list[dict[str, Any]]) -> str:
    """The resources with the changes made, by hand as a user would."""
    documents = [item for item in yaml.safe_load_all(text) if item]
    for change in changes:
        namespace, _, name = change["policy"].partition("/")
        (found,) = [
            item
            for item in documents
            if item["kind"] == "NetworkPolicy"
            and (item["metadata"]["namespace"], item["metadata"]["name"]) == (namespace, name)
        ]
        direction, _, rest = change["field"].removeprefix("spec.").partition("[")
        entries = found["spec"].setdefault(direction, [])
        if rest:
            entries = entries[int(rest.partition("]")[0])]["ports"]
        entries += change["append"]
    return yaml.safe_dump_all(documents)


@pytest.mark.parametrize(
    ("text", "source", "destination", "fields"),
    [
        (NO_HBONE, "demo/sleep", ONE, ["spec.ingress[0].ports"]),
        (NAMED.replace("15008", "15009"), "demo/sleep", ONE, ["spec.ingress[0].ports"]),
        (OTHER_INNER, "demo/sleep", ONE, ["spec.ingress[0].ports"]),
        (CLOSED, "demo/sleep", ONE, ["spec.ingress"]),
        (CLOSED, "10.77.0.31", ONE, ["spec.ingress"]),
        (CLOSED, "plain/old", ONE, ["spec.ingress"]),
        (NO_EGRESS, "demo/sleep", ONE, ["spec.egress"]),
        (NO_EGRESS, "demo/sleep", "192.0.2.1:443", ["spec.egress"]),
        (CLOSED_EGRESS, "demo/sleep", ONE, ["spec.egress", "spec.ingress"]),
        (CLOSED_EGRESS, "demo/sleep", "echo:80", ["spec.egress", "spec.ingress"]),
        (ONLY_WEB, "demo/sleep", ONE, ["spec.ingress"]),
        (DNS, "demo/sleep", "demo/echo-v2:54/udp", ["spec.ingress[0].ports"]),
        (CLOSED, "demo/sleep", "demo/echo-v2:132/sctp", ["spec.ingress"]),
    ],
)
def test_what_is_refused_is_admitted_after_the_suggested_change(
    netpol, text, source, destination, fields
):
    before = explained(netpol, BASE + text, source, destination)
    assert before["outcome"] == "denied"
    assert sorted(item["field"] for item in before["changes"]) == sorted(fields)
    after = explained(netpol, changed(BASE + text, before["changes"]), source, destination)
    assert after["outcome"] != "denied"
    assert after["changes"] == []


def test_a_suggested_rule_admits_nobody_else(netpol):
    text = BASE + entry("web", "10.244.1.12", "web") + CLOSED
    found = explained(netpol, text, "demo/sleep", ONE)
    after = changed(text, found["changes"])
    assert explained(netpol, after, "demo/sleep", ONE)["outcome"] == "allowed"
    assert explained(netpol, after, "demo/web", ONE)["outcome"] == "denied"
    assert explained(netpol, after, "demo/sleep", "demo/echo-v2:9")["outcome"] == "denied"


def test_authorization_is_no_matter_of_network_policy(netpol):
    assert explained(netpol, BASE + DENY, "demo/sleep", ONE)["outcome"] == "allowed"


@pytest.mark.parametrize(
    ("destination", "outcome"),
    [("demo/echo-v2:53/udp", "plaintext"), ("demo/echo-v2:53", "denied")],
)
def test_protocols_are_told_apart(netpol, destination, outcome):
    assert explained(netpol, BASE + DNS, "demo/sleep", destination)["outcome"] == outcome


def test_text_names_the_policy_and_shows_what_to_append(netpol):
    status, out = netpol(BASE + NO_HBONE, "explain", "demo/sleep", ONE)
    assert status == 3
    assert "stop  ingress 15008" in out
    assert "NetworkPolicy demo/app-port, append to spec.ingress[0].ports:\n" in out
    assert "    - protocol: TCP\n      port: 15008\n" in out


def test_unknown_protocol_is_an_error(netpol, capsys):
    status, _ = netpol(BASE, "explain", "demo/sleep", "demo/echo-v2:53/icmp")
    assert status == 1


# --- lint ------------------------------------------------------------------------------------
BLOCK = """
---
# the application's port
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: app-port
  namespace: demo
spec:
  podSelector: {matchLabels: {app: echo}}
  ingress:
    - ports:
        # http
        - port: 8080   # and no other
      from:
        - podSelector: {}
"""
UNPORTED = policy("NetworkPolicy", "all", "{podSelector: {}, ingress: [{}]}")


@pytest.mark.parametrize("text", [NO_HBONE, BLOCK, BLOCK + NO_EGRESS, NAMED.replace("15008", "1")])
def test_fix_writes_what_was_shown_and_leaves_nothing_to_find(netpol, tmp_path, text):
    status, out = netpol(BASE + text, "lint")
    assert status == 1
    assert "ingress rule 0 admits ports, but not TCP 15008" in out
    added = [line[1:] for line in out.splitlines() if line.startswith("+") and "15008" in line]
    assert len(added) == 1 or text is not BLOCK
    status, _ = netpol(BASE + text, "lint", "--fix")
    assert status == 0
    fixed = (tmp_path / "mesh.yaml").read_text()
    assert all(line in fixed for line in added)
    assert [line for line in BASE.splitlines() + text.splitlines() if "#" in line] == [
        line for line in fixed.splitlines() if "#" in line
    ]
    status, out = netpol(fixed, "lint")
    assert status == 0, out
    assert explained(netpol, fixed, "demo/echo-v1", ONE)["outcome"] == "allowed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        UNPORTED,
        CLOSED,
        DNS,
        OTHER_INNER,
        # another policy admits the mesh, and this one the port
        NO_HBONE + policy("NetworkPolicy", "mesh", "{podSelector: {}, ingress: [{ports: [{port:"
                          " 15008}]}]}"),
        # nobody in the mesh is meant
        NO_HBONE.replace("{ports:", "{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports:"),
        NO_HBONE.replace("demo", "plain").replace("app: echo", "app: old"),
    ],
)  # fmt: skip
def test_policies_that_forget_nothing_are_left_alone(netpol, text):
    status, out = netpol(BASE + text, "lint")
    assert (status, out) == (0, "every rule for captured workloads admits what the mesh needs\n")


def test_egress_towards_the_mesh_needs_the_port_too(netpol):
    text = policy(
        "NetworkPolicy",
        "out",
        "{podSelector: {matchLabels: {app: sleep}}, policyTypes: [Egress],"
        " egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 443}]}]}",
    )
    _, out = netpol(BASE + text, "lint")
    assert "egress rule 0 admits ports, but not TCP 15008" in out


# --- matrix and render -----------------------------------------------------------------------
def test_matrix_says_all_none_or_which(netpol):
    text = BASE + ONLY_WEB + entry("web", "10.244.1.12", "web")
    _, out = netpol(text, "matrix", "-o", "json")
    cells = {(item["source"], item["destination"]): item for item in json.loads(out)}
    assert cells["demo/web", "demo/echo-v1"]["verdict"] == "all"
    assert cells["demo/sleep", "demo/echo-v1"]["verdict"] == "none"
    assert cells["demo/sleep", "demo/echo-v1"]["refused"] == ["8080"]
    assert cells["demo/echo-v1", "demo/echo-v1"]["verdict"] == "all"  # to itself
    _, table = netpol(text, "matrix", "-n", "demo")
    head, *rows = table.splitlines()
    assert head.split()[3:] == ["demo/echo-v1", "demo/echo-v2", "demo/sleep", "demo/web"]
    assert [row.split()[0] for row in rows] == head.split()[3:]
    assert rows[2].split()[1:3] == ["none", "none"]


def test_drawing_has_a_square_per_pair(netpol):
    from xml.etree import ElementTree

    _, out = netpol(BASE + CLOSED, "matrix", "-o", "svg")
    squares = ElementTree.fromstring(out).findall("{http://www.w3.org/2000/svg}rect")
    assert len(squares) == 16
    assert {item.get("fill") for item in squares} == {"#2e7d32", "#c62828"}


def test_render_is_what_the_node_loads(netpol, tmp_path):
    _, out = netpol(BASE + NO_HBONE, "render", "node2")
    assert "table inet metalmesh-policy {" in out
    assert "demo/app-port ingress rule 0" in out
    assert "10.244.2.11" in out
    assert "10.244.1.11" not in out.partition("chain forward-ingress")[0].partition("bound-v6")[0]
    status, _ = netpol(BASE, "render", "node9")
    assert status == 1
    assert Path(tmp_path / "mesh.yaml").exists()
