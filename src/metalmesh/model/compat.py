"""Deviations from Istio that can be switched back (``istio_compat``; docs/beyond-istio.md)."""

from __future__ import annotations

from enum import Enum
from typing import Any


class Deviation(Enum):
    """What is done as Istio does it once its name is listed."""

    #: HTTP attributes can turn a DENY rule into one that does nothing
    HTTP_DENY = "http_deny"
    #: ``trustDomains`` and ``notTrustDomains`` of a source are not looked at
    TRUST_DOMAINS = "trust_domains"
    #: a policy that a workload lists and that is not known is skipped
    MISSING_POLICY = "missing_policy"
    #: a workload that gains or loses a policy keeps its open connections
    POLICY_ATTACHMENT = "policy_attachment"
    #: once NetworkPolicy admits port 15008, it is not asked about the port inside
    NETWORK_POLICY_PORTS = "network_policy_ports"


#: none of them, and all of them
NOTHING: frozenset[Deviation] = frozenset()
EVERYTHING = frozenset(Deviation)


def parse_istio_compat(value: Any) -> frozenset[Deviation]:
    """``true`` is everything, ``false`` nothing, a list the named ones; else ValueError."""
    if isinstance(value, bool):
        return EVERYTHING if value else NOTHING
    if not isinstance(value, list):
        raise ValueError("must be true, false or a list of names")
    known = {entry.value: entry for entry in Deviation}
    for name in value:
        if name not in known:
            raise ValueError(f"knows no {name!r}; the names are {', '.join(sorted(known))}")
    return frozenset(known[name] for name in value)
