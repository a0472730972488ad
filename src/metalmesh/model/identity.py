"""SPIFFE identities of workloads: ``spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT``.

Strict as Istio's: exactly five segments, no query, no empty part (istio-facts 2.3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from metalmesh.errors import IdentityError

_SEGMENT = re.compile(r"[A-Za-z0-9._-]+\Z")


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """One workload identity."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"spiffe://{self.principal}"

    @property
    def principal(self) -> str:
        """The identity without its scheme, as AuthorizationPolicy ``principals`` spell it."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


@dataclass(frozen=True, slots=True)
class SignedBy:
    """What certificates of the mesh are signed with and trusted by; SHA-256 of certificates."""

    roots: frozenset[bytes]
    issuing: bytes


def check_trust_domain(name: str) -> str:
    """A trust domain's name, as it is; :class:`IdentityError` when it cannot be in an identity."""
    if not _SEGMENT.match(name):
        raise IdentityError(
            f"trust domain {name!r} must be letters, digits, dots, underscores or dashes, without "
            "spiffe://"
        )
    return name


def parse_spiffe_id(uri: str) -> SpiffeId:
    """Parse a SPIFFE URI; raise :class:`IdentityError` for anything but the strict form."""
    parts = uri.removeprefix("spiffe://").split("/")
    shaped = uri.startswith("spiffe://") and len(parts) == 5
    if not shaped or parts[1] != "ns" or parts[3] != "sa":
        raise IdentityError(
            f"identity {uri!r} is not of the form spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
        )
    for part in (parts[0], parts[2], parts[4]):
        if not _SEGMENT.match(part):
            raise IdentityError(
                f"identity {uri!r}: segment {part!r} must be letters, digits, dots, "
                "underscores or dashes"
            )
    return SpiffeId(parts[0], parts[2], parts[4])
