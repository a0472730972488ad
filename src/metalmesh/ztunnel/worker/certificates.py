"""TLS contexts of local identities, made from PEM that main sends, never from a file.

``ssl`` loads a key from a path only, so the PEM passes through an anonymous memory file. A
renewed certificate makes new contexts; connections that are open keep theirs.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import CertificateError, IdentityError
from metalmesh.model.identity import SpiffeId, parse_spiffe_id
from metalmesh.ztunnel.worker.loop import Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.ztunnel.messages import Certificate
    from metalmesh.ztunnel.worker.loop import Loop

#: AES-GCM only (istio-facts 2.3). Python before 3.15 cannot choose the suites of TLS 1.3, so
#: what was negotiated is checked when the handshake is over.
CIPHER_SUITES: Final = frozenset({"TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"})
#: how long a connection waits for its certificate, seconds, and how many may
WAIT_SECONDS: Final = 10.0
MAX_WAITING: Final = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a local identity proves itself with, as server and as client."""

    identity: SpiffeId
    server: ssl.SSLContext
    client: ssl.SSLContext


def make_credentials(message: Certificate, keylog_path: str) -> Credentials:
    """Contexts for a certificate; CertificateError if the PEM is no good."""
    try:
        identity = parse_spiffe_id(message.identity)
        return Credentials(
            identity,
            _context(ssl.PROTOCOL_TLS_SERVER, message, keylog_path),
            _context(ssl.PROTOCOL_TLS_CLIENT, message, keylog_path),
        )
    except (ssl.SSLError, ValueError, IdentityError) as error:
        raise CertificateError(
            f"certificate of {message.identity}: cannot be used ({error}); "
            "check what the CA returns"
        ) from error


def _context(protocol: int, message: Certificate, keylog_path: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # identities are in URI names, checked by us
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.load_verify_locations(cadata=message.roots_pem)
    fd = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        os.write(fd, f"{message.chain_pem}\n{message.key_pem}".encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    if keylog_path:
        context.keylog_filename = keylog_path
    return context


def peer_identities(connection: ssl.SSLObject) -> list[SpiffeId]:
    """The SPIFFE identities of a verified peer, in order; other names are skipped."""
    certificate = connection.getpeercert() or {}
    found = []
    names: Any = certificate.get("subjectAltName", ())
    for kind, value in names:
        if kind != "URI" or not isinstance(value, str):
            continue
        try:
            found.append(parse_spiffe_id(value))
        except IdentityError:
            continue  # a name for somebody else; without any usable one the peer is refused
    return found


class CertificateStore:
    """Credentials by identity, and the connections that wait for them."""

    def __init__(self, loop: Loop, need: Callable[[str], None]) -> None:
        self._need = need
        self._known: dict[str, Credentials] = {}
        self._waiting: dict[str, list[Waiter]] = {}
        self._count = 0
        self._deadlines: Deadlines[Waiter] = Deadlines(loop, WAIT_SECONDS, self._expire)

    def get(self, identity: str) -> Credentials | None:
        """What is there now."""
        return self._known.get(identity)

    def wait(self, identity: str, done: Callable[[Credentials | None, str], None]) -> None:
        """Call ``done(credentials, error)`` when there are credentials or there is no hope."""
        if self._count >= MAX_WAITING:
            done(None, f"{MAX_WAITING} connections wait for certificates already")
            return
        waiter = Waiter(identity, done)
        waiters = self._waiting.setdefault(identity, [])
        waiters.append(waiter)
        self._count += 1
        self._deadlines.add(waiter)
        if len(waiters) == 1:
            self._need(identity)

    def put(self, credentials: Credentials) -> None:
        """New credentials, for new connections and those that wait."""
        self._known[str(credentials.identity)] = credentials
        self._settle(str(credentials.identity), credentials, "")

    def fail(self, identity: str, error: str) -> None:
        """There is no certificate to be had now; an older one stays in use until it expires."""
        self._settle(identity, None, error)

    def _settle(self, identity: str, credentials: Credentials | None, error: str) -> None:
        for waiter in self._waiting.pop(identity, ()):
            self._count -= 1
            self._deadlines.discard(waiter)
            waiter.done(credentials, error)

    def _expire(self, waiter: Waiter) -> None:
        waiters = self._waiting.get(waiter.identity, [])
        if waiter in waiters:
            waiters.remove(waiter)
            self._count -= 1
            if not waiters:
                del self._waiting[waiter.identity]
        waiter.done(None, f"no certificate for {waiter.identity} within {WAIT_SECONDS:.0f} s")


class Waiter:
    """A connection that waits for credentials."""

    __slots__ = ("done", "identity")

    def __init__(self, identity: str, done: Callable[[Credentials | None, str], None]) -> None:
        self.identity = identity
        self.done = done
