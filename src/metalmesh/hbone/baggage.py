"""What a CONNECT says about its source: ``baggage``, ``forwarded`` and ``traceparent``.

Keys and forms are Istio's (istio-facts 2.1). These headers are for logs and metrics only and
never for a decision: the identity is the client certificate's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from metalmesh.hbone.headers import format_authority

if TYPE_CHECKING:
    from collections.abc import Mapping

#: baggage key -> label of a workload, in the order they are sent
_KEYS: Final = (
    ("k8s.cluster.name", "cluster"),
    ("k8s.namespace.name", "namespace"),
    ("k8s.pod.name", "workload"),
    ("service.name", "canonical_service"),
    ("service.version", "canonical_revision"),
    ("cloud.region", "region"),
    ("cloud.availability_zone", "zone"),
)
_LABEL_OF_KEY: Final = {
    **dict(_KEYS),
    "k8s.deployment.name": "workload",
    "k8s.cronjob.name": "workload",
    "k8s.job.name": "workload",
}
#: characters that would break the header's own grammar
_UNSAFE: Final = re.compile(r"[^!#-+\--:<-\[\]-~]")
_TRACEPARENT_CHARS: Final = 55


def encode_baggage(labels: Mapping[str, str]) -> str:
    """The ``baggage`` header of a workload; unknown labels are left out."""
    pairs = ((key, labels.get(label, "")) for key, label in _KEYS)
    return ",".join(f"{key}={_UNSAFE.sub('_', value)}" for key, value in pairs if value)


def parse_baggage(header: str) -> dict[str, str]:
    """Labels of the source; unknown keys and empty values count as absent."""
    labels: dict[str, str] = {}
    for item in header.split(","):
        key, _, value = item.partition("=")
        label = _LABEL_OF_KEY.get(key.strip())
        if label is not None and value.strip():
            labels[label] = value.strip()
    return labels


def forwarded_for(address: str, port: int, hostname: str = "") -> str:
    """The ``forwarded`` header: the client and, when it dialled a service, its host name."""
    value = f'for="{format_authority(address, port)}"'
    return f"{value};host={hostname}" if hostname else value


def make_traceparent(random_bytes: bytes) -> str:
    """A fresh trace context from 24 random bytes."""
    return f"00-{random_bytes[:16].hex()}-{random_bytes[16:24].hex()}-00"


def usable_traceparent(header: str) -> bool:
    """Whether an incoming trace context may be passed on."""
    return len(header) == _TRACEPARENT_CHARS
