"""Policies for the server of the tests, short enough to read beside what they do."""

from __future__ import annotations

from typing import Any

from tests.lab.cast import NAMESPACE
from tests.support.mesh import Resource, Workload

SERVER = {"matchLabels": {"app": "server"}}
Rule = dict[str, Any]


def authorization(action: str, *rules: Rule, everywhere: bool = False) -> Resource:
    """An AuthorizationPolicy on the server, or on the whole namespace."""
    spec: dict[str, Any] = {"action": action, "rules": list(rules)}
    if not everywhere:
        spec["selector"] = SERVER
    return _object("security.istio.io/v1", "AuthorizationPolicy", "gate", spec)


def from_workload(workload: Workload) -> Rule:
    """Matches what comes from an identity."""
    return {"from": [{"source": {"principals": [workload.principal]}}]}


def to_port(port: int) -> Rule:
    """Matches what goes to a port."""
    return {"to": [{"operation": {"ports": [str(port)]}}]}


def network_policy(*rules: Rule) -> Resource:
    """A NetworkPolicy on the server that admits what any of the rules admits."""
    spec = {"podSelector": SERVER, "policyTypes": ["Ingress"], "ingress": list(rules)}
    return _object("networking.k8s.io/v1", "NetworkPolicy", "server", spec)


def ports(*numbers: int, only_from: dict[str, Any] | None = None) -> Rule:
    """Admits these TCP ports, from everywhere or from some peers."""
    rule: Rule = {"ports": [{"protocol": "TCP", "port": number} for number in numbers]}
    return rule if only_from is None else rule | {"from": [only_from]}


def peer_authentication(mode: str, *, port_modes: dict[int, str] | None = None) -> Resource:
    """The mTLS mode of the namespace, or of the server alone when ports differ."""
    spec: dict[str, Any] = {"mtls": {"mode": mode}}
    if port_modes:
        spec["selector"] = SERVER
        spec["portLevelMtls"] = {str(port): {"mode": kind} for port, kind in port_modes.items()}
    return _object("security.istio.io/v1", "PeerAuthentication", "mode", spec)


def _object(version: str, kind: str, name: str, spec: dict[str, Any]) -> Resource:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
