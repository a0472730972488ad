"""Peers whose certificate, or one of its issuers', is on a revocation list.

Main reads the lists; here a peer's chain is compared with what it found. Nothing is done while the
lists are empty; what no list mentions is good (istio-facts 2.3).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from metalmesh.errors import CertificateError
from metalmesh.pki.der import certificate_key
from metalmesh.ztunnel.worker.tls import REVOKED, Loss, TlsFailedError

if TYPE_CHECKING:
    import ssl

    from metalmesh.ztunnel.worker.metrics import Metrics


class Revoked:
    """The revoked certificates."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.keys: frozenset[str] = frozenset()

    def check(self, tls: ssl.SSLObject, reporter: str) -> None:
        """Raise when the peer of a finished handshake must not be talked to."""
        if self.keys and self.found(tls, reporter):
            raise TlsFailedError(REVOKED, Loss.REVOKED)

    def found(self, tls: ssl.SSLObject, reporter: str) -> bool:
        """Whether anything of a peer's chain is revoked; counts it."""
        try:
            revoked = any(certificate_key(der) in self.keys for der in _verified_chain(tls))
        except CertificateError:
            revoked = True  # OpenSSL reads it and we do not: better not
        self._metrics.crl_rejections[reporter] += revoked
        return revoked


def _verified_chain(tls: ssl.SSLObject) -> list[bytes]:
    """Leaf first, root last, DER; public since Python 3.13."""
    if sys.version_info >= (3, 13):
        return tls.get_verified_chain()
    import _ssl

    return [
        certificate.public_bytes(_ssl.ENCODING_DER)
        for certificate in tls._sslobj.get_verified_chain()  # type: ignore[attr-defined]  # noqa: SLF001
    ]
