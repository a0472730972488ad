"""Kubernetes and Istio objects: YAML in, frozen values out; light to import (PyYAML only)."""

from __future__ import annotations

from metalmesh.model.resources.core import Namespace, NodeResource, ServiceAccount
from metalmesh.model.resources.network_policy import NetworkPolicyResource
from metalmesh.model.resources.parse import (
    KINDS,
    ParsedObject,
    Resource,
    object_id,
    parse_documents,
    parse_object,
)
from metalmesh.model.resources.policies import AuthorizationPolicy, PeerAuthentication
from metalmesh.model.resources.service import ServiceResource
from metalmesh.model.resources.service_entry import ServiceEntry
from metalmesh.model.resources.workload_entry import WorkloadEntry

__all__ = [
    "KINDS",
    "AuthorizationPolicy",
    "Namespace",
    "NetworkPolicyResource",
    "NodeResource",
    "ParsedObject",
    "PeerAuthentication",
    "Resource",
    "ServiceAccount",
    "ServiceEntry",
    "ServiceResource",
    "WorkloadEntry",
    "object_id",
    "parse_documents",
    "parse_object",
]
