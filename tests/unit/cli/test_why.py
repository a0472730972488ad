"""``metalmesh why`` on a directory of resources, with no mesh: outcome, object, rule, hop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metalmesh.cli.main import main

MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: demo}
spec:
  clusterIP: 10.96.0.10
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: demo}
spec: {clusterIP: 10.96.0.11, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: demo}
spec: {clusterIP: None, selector: {app: echo}, ports: [{port: 8080}]}
"""
ENTRY = """
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{app: {app}}}
  annotations: {{ambient.metalmesh.io/node: {node}{more}}}
spec: {{address: {address}, serviceAccount: {name}, ports: {{web: 8080}}}}
"""


def entry(name: str, address: str, app: str, namespace: str = "demo", more: str = "") -> str:
    node = "node1" if address.startswith("10.244.1.") else "node2"
    return ENTRY.format(
        name=name, address=address, app=app, namespace=namespace, node=node, more=more
    )


ENTRIES = (
    entry("sleep", "10.244.1.10", "sleep")
    + entry("echo-v1", "10.244.1.11", "echo")
    + entry("echo-v2", "10.244.2.11", "echo")
    + entry("old", "10.244.2.20", "old", "plain")
)


def policy(kind: str, name: str, spec: str, namespace: str = "demo") -> str:
    group = "networking.k8s.io" if kind == "NetworkPolicy" else "security.istio.io"
    return (
        f"\n---\napiVersion: {group}/v1\nkind: {kind}\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )


STRICT = policy("PeerAuthentication", "strict", "{mtls: {mode: STRICT}}")
MESH_STRICT = policy("PeerAuthentication", "all", "{mtls: {mode: STRICT}}", "istio-system")
PORT_STRICT = policy(
    "PeerAuthentication",
    "some",
    "{selector: {matchLabels: {app: echo}}, mtls: {mode: PERMISSIVE},"
    " portLevelMtls: {'8080': {mode: STRICT}}}",
)
DENY = policy(
    "AuthorizationPolicy",
    "deny",
    "{action: DENY, rules: [{from: [{source: {namespaces: [other]}}]},"
    " {from: [{source: {principals: [cluster.local/ns/demo/sa/sleep]}}]}]}",
)
#: its first rule has HTTP attributes and is left out, which must not shift the numbers
ALLOW = policy(
    "AuthorizationPolicy",
    "allow",
    "{rules: [{to: [{operation: {paths: [/x]}}]},"
    " {from: [{source: {principals: [cluster.local/ns/demo/sa/web]}}]},"
    " {from: [{source: {namespaces: [demo]}}], to: [{operation: {ports: ['%s']}}]}]}",
)
NO_HBONE = policy(
    "NetworkPolicy",
    "app-port",
    "{podSelector: {matchLabels: {app: echo}}, policyTypes: [Ingress],"
    " ingress: [{ports: [{port: 8080}]}]}",
)
#: named ports make two rules of the first one
NAMED = policy(
    "NetworkPolicy",
    "named",
    "{podSelector: {matchLabels: {app: echo}}, policyTypes: [Ingress], ingress:"
    " [{ports: [{port: web}, {port: 9}]}, {ports: [{port: 15008}]}]}",
)
OTHER_INNER = policy(
    "NetworkPolicy",
    "inner",
    "{podSelector: {matchLabels: {app: echo}}, policyTypes: [Ingress],"
    " ingress: [{ports: [{port: 15008}]}, {ports: [{port: 9090}]}]}",
)
NO_EGRESS = policy(
    "NetworkPolicy", "quiet", "{podSelector: {matchLabels: {app: sleep}}, policyTypes: [Egress]}"
)
BYPASS = entry(
    "direct", "10.244.2.30", "direct", more=', ambient.istio.io/bypass-inbound-capture: "true"'
)
HOST = entry("metal", "10.77.0.22", "metal", more=", ambient.metalmesh.io/netns: host")
EXCLUDING = entry(
    "legacy",
    "10.244.2.31",
    "legacy",
    more=", ambient.metalmesh.io/exclude-inbound-ports: '9000-9100'"
    ", ambient.metalmesh.io/exclude-outbound-ports: '8080'",
)
METAL_CLOSED = policy("NetworkPolicy", "metal", "{podSelector: {matchLabels: {app: metal}}}")
ONE = "demo/echo-v2:8080"

#: resources, source, destination, outcome, hop, deciding object, its rule, words of the text
ROWS = [
    ("", "demo/sleep", ONE, "allowed", None, None, None, "no allow policies"),
    ("", "demo/sleep", "echo:80", "allowed", "route", "Service demo/echo", None, "2 endpoints"),
    (STRICT, "demo/sleep", ONE, "allowed", None, None, None, "no allow policies"),
    # plaintext, and who refuses it
    ("", "10.77.0.31", ONE, "plaintext", None, None, None, "with no identity"),
    ("", "plain/old", ONE, "plaintext", None, None, None, "not in the mesh"),
    ("", "demo/sleep", "plain/old:80", "plaintext", None, None, None, "nobody encrypts"),
    (STRICT, "10.77.0.31", ONE, "denied", "authorization", "PeerAuthentication demo/strict",
     None, "STRICT"),
    (MESH_STRICT, "plain/old", ONE, "denied", "authorization",
     "PeerAuthentication istio-system/all", None, "STRICT"),
    (PORT_STRICT, "10.77.0.31", ONE, "denied", "authorization", "PeerAuthentication demo/some",
     None, "STRICT"),
    (PORT_STRICT, "10.77.0.31", "demo/echo-v2:9", "plaintext", None, None, None, "no identity"),
    (BYPASS + STRICT, "10.77.0.31", "demo/direct:80", "plaintext", None, None, None,
     "around policies"),
    # authorization, with the user's own numbers of rules
    (DENY, "demo/sleep", ONE, "denied", "authorization", "AuthorizationPolicy demo/deny", 1,
     "explicitly denied by: demo/deny"),
    (DENY, "demo/echo-v1", ONE, "allowed", None, None, None, "no allow policies"),
    (ALLOW % 8080, "demo/sleep", ONE, "allowed", "authorization",
     "AuthorizationPolicy demo/allow", 2, "allow policy match"),
    (ALLOW % 9090, "demo/sleep", ONE, "denied", "authorization",
     "AuthorizationPolicy demo/allow", 1,
     "none allowed; this comes closest, but principal cluster.local/ns/demo/sa/sleep must be "
     "cluster.local/ns/demo/sa/web"),
    (ALLOW % 8080, "10.77.0.31", ONE, "denied", "authorization",
     "AuthorizationPolicy demo/allow", 1, "principal nobody must be"),
    # policies that do not do what is written in them are named
    (policy("AuthorizationPolicy", "audit", "{action: AUDIT}"), "demo/sleep", ONE, "allowed",
     "authorization", "AuthorizationPolicy demo/audit", None, "does not support the AUDIT action"),
    # NetworkPolicy: on the wire and inside of the tunnel
    (NO_HBONE, "demo/sleep", ONE, "denied", "ingress 15008", "NetworkPolicy demo/app-port", None,
     "admit TCP port 15008"),
    (NO_HBONE, "10.77.0.31", ONE, "plaintext", "ingress 8080", "NetworkPolicy demo/app-port", 0,
     "admits tcp/8080"),
    (NAMED, "demo/sleep", ONE, "allowed", "inside HBONE 8080", "NetworkPolicy demo/named", 0,
     "admits tcp/8080"),
    (OTHER_INNER, "demo/sleep", ONE, "denied", "inside HBONE 8080", "NetworkPolicy demo/inner",
     None, "admits tcp/8080 from 10.244.1.10"),
    (NO_EGRESS, "demo/sleep", ONE, "denied", "egress 15008", "NetworkPolicy demo/quiet", None,
     "15008"),
    (NO_EGRESS, "demo/sleep", "192.0.2.1:443", "denied", "egress 443",
     "NetworkPolicy demo/quiet", None, "tcp/443 to 192.0.2.1"),
    (NO_EGRESS, "demo/sleep", "demo/sleep:80", "allowed", None, None, None, ""),
    # the machine's own namespace: no packet rules, but those inside of the tunnel
    (HOST, "demo/sleep", "demo/metal:80", "allowed", None, None, None, "no packet rules"),
    (HOST + METAL_CLOSED, "demo/sleep", "demo/metal:80", "denied", "inside HBONE 80",
     "NetworkPolicy demo/metal", None, "admits tcp/80"),
    (HOST + METAL_CLOSED, "10.77.0.31", "demo/metal:80", "plaintext", None, None, None,
     "with no identity"),
    # what capture leaves alone
    (EXCLUDING + STRICT, "10.77.0.31", "demo/legacy:9001", "plaintext", None, None, None,
     "excluded from capture: plaintext goes around policies"),
    (EXCLUDING + STRICT, "10.77.0.31", "demo/legacy:80", "denied", "authorization",
     "PeerAuthentication demo/strict", None, "STRICT"),
    (EXCLUDING, "demo/legacy", ONE, "plaintext", None, None, None, "is excluded from capture"),
    (EXCLUDING, "demo/legacy", "demo/echo-v2:81", "allowed", None, None, None, "takes it"),
    # what is not there
    ("", "demo/sleep", "192.0.2.1:443", "passed through", None, None, None, "passed through"),
    ("", "demo/sleep", "empty:80", "unreachable", "route", "Service demo/empty", None,
     "its selector matches no workload"),
    ("", "demo/sleep", "echo.demo.svc:81", "unreachable", "route", "Service demo/echo", None,
     "the service has no port 81, only 80"),
    ("", "plain/old", "echo.demo:81", "unreachable", "route", "Service demo/echo", None,
     "no healthy upstream"),
]  # fmt: skip


def why(tmp_path: Path, capsys: pytest.CaptureFixture[str], resources: str, *words: str):
    """Exit status and answer."""
    path = tmp_path / "mesh.yaml"
    path.write_text(MESH + ENTRIES + resources)
    status = main(["why", *words, "--resources", str(tmp_path), "-o", "json"])
    printed = capsys.readouterr()
    assert printed.err == ""
    return status, json.loads(printed.out)


def all_texts(answer: dict) -> str:
    steps = [*answer["steps"], *(step for path in answer["paths"] for step in path["steps"])]
    return "\n".join(step["text"] for step in steps)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]}-{row[2]}-{row[3]}-{row[5]}")
def test_outcome_and_the_deciding_rule_are_named(
    row: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table over every hop; each refusal has its object and, where one rule decides, the rule."""
    resources, source, destination, outcome, hop, thing, rule, words = row
    status, answer = why(tmp_path, capsys, resources, source, destination)
    assert answer["outcome"] == outcome, json.dumps(answer, indent=1)
    assert status == (3 if outcome in ("denied", "unreachable") else 0)
    assert words in all_texts(answer)
    decided = answer["decidedBy"]
    if thing is None:
        assert decided is None or decided["effect"] != "stop"
    else:
        assert (decided["hop"], decided["object"], decided["rule"]) == (hop, thing, rule)


def test_each_endpoint_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A policy on one of two endpoints: it depends."""
    one = policy(
        "AuthorizationPolicy", "none",
        "{selector: {matchLabels: {only: v3}}, action: DENY, rules: [{}]}",
    ) + entry("echo-v3", "10.244.2.12", "echo, only: v3")  # fmt: skip
    status, answer = why(tmp_path, capsys, one, "demo/sleep", "echo.demo.svc.cluster.local:80")
    assert (status, answer["outcome"]) == (3, "depends on the endpoint")
    assert {path["endpoint"]: path["outcome"] for path in answer["paths"]} == {
        "demo/echo-v1": "allowed", "demo/echo-v2": "allowed", "demo/echo-v3": "denied",
    }  # fmt: skip
    assert answer["decidedBy"]["object"] == "AuthorizationPolicy demo/none"


def test_headless_service_is_each_of_its_endpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, answer = why(tmp_path, capsys, "", "demo/sleep", "peers:8080")
    assert answer["outcome"] == "allowed"
    assert [path["address"] for path in answer["paths"]] == [
        "10.244.1.11:15008", "10.244.2.11:15008",
    ]  # fmt: skip


def test_dry_run_policies_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = DENY.replace(
        "namespace: demo}", 'namespace: demo, annotations: {istio.io/dry-run: "true"}}'
    )
    _, answer = why(tmp_path, capsys, dry, "demo/sleep", ONE)
    assert answer["outcome"] == "allowed"
    assert "dry-run" in all_texts(answer)


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("demo/nobody", ONE, "source 'demo/nobody' is no workload"),
        ("demo/sleep", "echo", "must be HOST:PORT"),
        ("demo/sleep", "echo:99999", "must be HOST:PORT"),
        ("demo/sleep", "example.com:80", "neither a service nor a workload"),
        ("plain/old", "echo:80", "neither a service nor a workload"),
    ],
)
def test_who_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, destination: str, words: str
) -> None:
    (tmp_path / "mesh.yaml").write_text(MESH + ENTRIES)
    assert main(["why", source, destination, "--resources", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def test_a_resource_that_is_not_in_force_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An explanation must not pretend that a refused policy counts."""
    (tmp_path / "mesh.yaml").write_text(MESH + ENTRIES + DENY.replace("DENY", "NEVER"))
    assert main(["why", "demo/sleep", ONE, "--resources", str(tmp_path)]) == 0
    assert "not in force:" in (err := capsys.readouterr().err)
    assert "AuthorizationPolicy demo/deny: spec.action" in err


def test_istios_ways_are_explained_where_they_are_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``istio_compat`` of the control plane: NetworkPolicy is not asked inside of HBONE."""
    config = tmp_path / "controlplane.yaml.txt"
    (tmp_path / "mesh.yaml").write_text(MESH + ENTRIES + OTHER_INNER)
    words = ["why", "demo/sleep", ONE, "--resources", str(tmp_path / "mesh.yaml")]
    for compat, status in (("[network_policy_ports]", 0), ("[]", 3)):
        config.write_text(f"component: controlplane\nserver_names: [cp1]\nistio_compat: {compat}\n")
        assert main([*words, "--config", str(config)]) == status
    capsys.readouterr()


TEXT = """\
demo/sleep -> echo:80: ALLOWED

  note  outbound  the ztunnel of node node1 takes it
  ok    route     Service demo/echo: port 80 leads to 2 endpoints

  endpoint demo/echo-v1 at 10.244.1.11:15008: allowed
    ok    ingress 15008      NetworkPolicy demo/named rule 1: ingress admits tcp/15008
    ok    authorization      AuthorizationPolicy demo/allow rule 2: allow policy match
    ok    inside HBONE 8080  NetworkPolicy demo/named rule 0: ingress admits tcp/8080

  endpoint demo/echo-v2 at 10.244.2.11:15008: allowed
    ok    ingress 15008      NetworkPolicy demo/named rule 1: ingress admits tcp/15008
    ok    authorization      AuthorizationPolicy demo/allow rule 2: allow policy match
    ok    inside HBONE 8080  NetworkPolicy demo/named rule 0: ingress admits tcp/8080
"""


def test_text_is_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow = (ALLOW % 8080).replace("paths: [/x]", "ports: ['1']")
    (tmp_path / "mesh.yaml").write_text(MESH + ENTRIES + NAMED + allow)
    assert main(["why", "demo/sleep", "echo:80", "--resources", str(tmp_path)]) == 0
    assert capsys.readouterr().out == TEXT
