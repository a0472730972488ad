"""The signing side of the control plane: the authority on disk, its serving certificate.

The authority is read again when its files change, so that a renewed issuing certificate is used
without a restart; while the new files are faulty the old authority goes on signing. The serving
certificate exists in memory only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import grpc

from metalmesh.controlplane.ca_files import ISSUING_CERT, ISSUING_KEY, ROOT_CERT, read_authority
from metalmesh.errors import CertificateError
from metalmesh.pki.ca import (
    CertificateAuthority,
    lifetime,
    read_request,
    sign_server,
    sign_workload,
)
from metalmesh.pki.keys import key_to_pem, make_key
from metalmesh.service.files import file_signature
from metalmesh.service.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from metalmesh.controlplane.metrics import ControlPlaneMetrics
    from metalmesh.model.identity import SignedBy, SpiffeId

SERVING_TTL: Final = timedelta(hours=24)
SERVING_RETRY: Final = timedelta(minutes=5)

log = Log("metalmesh.controlplane.ca")


@dataclass(frozen=True, slots=True)
class ServingCertificate:
    """A key and chain for TLS, and when to replace them."""

    key_pem: str
    chain_pem: str
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class Signed:
    """A workload's certificate; ``not_after`` in unix seconds."""

    #: leaf first, all roots last, PEM
    chain: list[str]
    serial: int
    not_after: int


class Issuer:
    """Signs with the authority of one directory."""

    def __init__(
        self,
        directory: Path,
        server_names: Sequence[str],
        svid_ttl_seconds: int,
        svid_max_ttl_seconds: int,
        metrics: ControlPlaneMetrics,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._server_names = server_names
        self._ttl_seconds = svid_ttl_seconds
        self._max_ttl_seconds = svid_max_ttl_seconds
        self._metrics = metrics
        now = self._clock()
        self._files = self._signature()
        self._authority: CertificateAuthority = read_authority(directory, now)
        self.serving = self._make_serving(now)

    def sign(self, csr_pem: str, identity: SpiffeId, ttl_seconds: int) -> Signed:
        """Sign a workload's request."""
        now = self._clock()
        key = read_request(csr_pem)
        ttl = lifetime(ttl_seconds, self._ttl_seconds, self._max_ttl_seconds)
        leaf = sign_workload(self._authority, key, identity, ttl, now)
        chain = self._authority.chain_pems(leaf)
        return Signed(chain, leaf.serial_number, int(leaf.not_valid_after_utc.timestamp()))

    @property
    def authority(self) -> SignedBy:
        """By what the certificates it signs are known."""
        return self._authority.identity

    def maintain(self) -> bool:
        """Take over changed files and renew the serving certificate when it is due.

        Returns whether it signs with something else from now on.
        """
        now, before = self._clock(), self._authority
        signature = self._signature()
        if signature != self._files:
            self._reload(now)
            self._files = signature
        if now >= self.serving.renew_at:
            self._renew_serving(now)
        return self._authority is not before

    def _renew_serving(self, now: datetime) -> None:
        """Replace the serving certificate; when that fails, try again later and go on."""
        try:
            self.serving = self._make_serving(now)
        except CertificateError as error:
            log.error("serving certificate not renewed", {"error": str(error)})
            retry_at = now + SERVING_RETRY
            self.serving = replace(self.serving, renew_at=retry_at)

    def _reload(self, now: datetime) -> None:
        try:
            self._authority = read_authority(self._directory, now)
        except CertificateError as error:
            self._metrics.ca_reload_failures.inc()
            log.error("changed CA not taken over; the old one stays", {"error": str(error)})
            return
        self.serving = self._make_serving(now)
        log.info("CA reloaded", {"not_after": self._authority.not_after.isoformat()})

    def _make_serving(self, now: datetime) -> ServingCertificate:
        """A serving certificate, renewed at half of its life."""
        key = make_key()
        cert = sign_server(self._authority, key.public_key(), self._server_names, SERVING_TTL, now)
        chain = self._authority.chain_pems(cert)[:-1]
        expiry = self._metrics.certificate_expiry
        expiry.set(cert.not_valid_after_utc.timestamp(), ("serving",))
        expiry.set(self._authority.not_after.timestamp(), ("issuing",))
        roots = (root.not_valid_after_utc for root in self._authority.roots)
        expiry.set(min(roots).timestamp(), ("root",))
        renew_at = now + (cert.not_valid_after_utc - now) / 2
        return ServingCertificate(key_to_pem(key), "".join(chain), renew_at)

    def _signature(self) -> tuple[object, ...]:
        """Identity and times of the CA's files; a missing file is part of it."""
        names = (ROOT_CERT, ISSUING_CERT, ISSUING_KEY)
        return tuple(file_signature(self._directory / name) for name in names)


def server_credentials(current: Callable[[], ServingCertificate]) -> grpc.ServerCredentials:
    """gRPC credentials that present whatever certificate is current at each handshake."""

    def configuration(cert: ServingCertificate) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(cert.key_pem.encode(), cert.chain_pem.encode())]
        )

    presented = current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal presented
        found = current()
        if found is presented:
            return None  # gRPC keeps what it has
        presented = found
        return configuration(found)

    return grpc.dynamic_ssl_server_credentials(
        configuration(presented),
        fetch,  # type: ignore[arg-type]  # the stubs do not know that None is allowed
        require_client_authentication=False,
    )
