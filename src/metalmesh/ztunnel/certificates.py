"""Keeps a certificate for every identity of this node: the shell around the schedule."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final, Protocol

from metalmesh.errors import CertificateError
from metalmesh.pki.csr import make_key_and_request
from metalmesh.pki.schedule import Priority, SvidSchedule
from metalmesh.pki.svid import parse_svid, split_pem
from metalmesh.service.logs import Log
from metalmesh.ztunnel import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from metalmesh.model.identity import SignedBy
    from metalmesh.pki.svid import Svid

#: over how long the renewals after a change of the CA are spread
RENEWAL_SPREAD_SECONDS: Final = 2.0

log = Log("metalmesh.ztunnel.certificates")


class Authority(Protocol):
    """Signs for an identity: the CA client."""

    async def create_certificate(self, identity: str, csr_pem: str, ttl_seconds: int) -> list[str]:
        """The chain, leaf first, roots last; raises CertificateError."""


class CertificateKeeper:
    """Requests, renews and hands out certificates; keys exist in memory only."""

    def __init__(
        self,
        authority: Authority,
        ttl_seconds: int,
        publish: Callable[[messages.Message], None],
    ) -> None:
        self._authority = authority
        self._ttl_seconds = ttl_seconds
        self._publish = publish
        self._wake = asyncio.Event()
        self._expected: SignedBy | None = None
        #: told the identity of every certificate that was issued
        self.on_issued: Callable[[str], None] = lambda _identity: None
        self._requests: set[asyncio.Task[None]] = set()
        self.schedule = SvidSchedule(lambda: random.uniform(-1, 1))  # noqa: S311 - no secret

    def set_wanted(self, identities: set[str]) -> None:
        """Have exactly these: prefetch the new ones, forget the others."""
        for identity in set(self.schedule.identities()) - identities:
            self.schedule.forget(identity)
        for identity in identities:
            self.schedule.want(identity, Priority.WARMUP, time.time())
        self._wake.set()

    def answer(self, identity: str, *, settled: bool) -> messages.Message | None:
        """What a worker that needs this identity is told now; None: it will hear later.

        Before we have ``settled`` a worker of the main process before us may know more than we do.
        """
        now = time.time()
        if identity not in self.schedule.identities():
            if not settled:
                return None
            return messages.CertificateUnavailable(
                identity=identity, error=f"no workload of this node has the identity {identity}"
            )
        svid = self.schedule.held(identity, now)
        if svid is not None:
            return _message(svid)
        error = self.schedule.error(identity)
        if error:
            return messages.CertificateUnavailable(identity=identity, error=error)
        self.schedule.want(identity, Priority.REAL_TIME, now)
        self._wake.set()
        return None

    def current(self, identity: str) -> Svid | None:
        """The valid certificate of an identity, with its key."""
        return self.schedule.held(identity, time.time())

    def held(self) -> list[messages.Certificate]:
        """Every valid certificate, for a worker that has just started."""
        now = time.time()
        svids = (self.schedule.held(identity, now) for identity in self.schedule.identities())
        return [_message(svid) for svid in svids if svid is not None]

    def adopt(self, certificate: messages.Certificate) -> None:
        """Go on with a certificate of the main process before us."""
        chain = [*split_pem(certificate.chain_pem), certificate.roots_pem]
        svid = parse_svid(certificate.identity, certificate.key_pem, chain)
        now = time.time()
        self.schedule.want(svid.identity, Priority.BACKGROUND, now)
        self.schedule.succeeded(svid.identity, svid, now)

    def retry_now(self) -> None:
        """The control plane is back: ask again at once for what failed."""
        self.schedule.retry_now(time.time())
        self._wake.set()

    def expect(self, authority: SignedBy) -> None:
        """The CA signs with this now: replace what was signed with anything else, soon."""
        if authority == self._expected:
            return
        self._expected = authority
        for identity in tuple(self.schedule.identities()):
            self._renew_if_outdated(identity)

    def _renew_if_outdated(self, identity: str) -> None:
        now = time.time()
        svid = self.schedule.held(identity, now)
        if svid is not None and self._expected not in (None, svid.signed_by):
            # every node hears of it in the same second
            spread = random.uniform(0, RENEWAL_SPREAD_SECONDS)  # noqa: S311 - no secret
            self.schedule.renew(identity, now + spread)
            self._wake.set()

    async def run(self) -> None:
        """Follow the schedule for ever."""
        while True:
            self._wake.clear()
            now = time.time()
            for identity in self.schedule.expired(now):
                self._unavailable(identity)
            for identity in self.schedule.start_due(now):
                task = asyncio.create_task(self._request(identity))
                self._requests.add(task)
                task.add_done_callback(self._requests.discard)
            deadline = self.schedule.next_deadline()
            # the wall clock may be set: look at it at least once a minute
            wait = 60.0 if deadline is None else min(60.0, max(0.0, deadline - now))
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _request(self, identity: str) -> None:
        expected = self._expected
        try:
            pair = make_key_and_request(identity)
            chain = await self._authority.create_certificate(
                identity, pair.csr_pem, self._ttl_seconds
            )
            svid = parse_svid(identity, pair.key_pem, chain)
        except CertificateError as error:
            log.warning("certificate refused", {"identity": identity, "error": str(error)})
            self._failed(identity, str(error))
        except Exception as error:
            # a fault of ours must not leave the identity without a next attempt
            log.exception(f"certificate request for {identity} failed", error)
            self._failed(identity, f"internal error: {error!r}")
        else:
            if self.schedule.succeeded(identity, svid, time.time()):
                log.info(
                    "certificate issued",
                    {"identity": identity, "expires_in_seconds": int(svid.not_after - time.time())},
                )
                self._publish(_message(svid))
                self.on_issued(identity)
                if expected is not self._expected:  # it may have been signed before the change
                    self._renew_if_outdated(identity)
        self._wake.set()

    def _failed(self, identity: str, error: str) -> None:
        if self.schedule.failed(identity, error, time.time()):
            self._unavailable(identity)

    def _unavailable(self, identity: str) -> None:
        error = self.schedule.error(identity)
        self._publish(messages.CertificateUnavailable(identity=identity, error=error))


def _message(svid: Svid) -> messages.Certificate:
    return messages.Certificate(
        identity=svid.identity,
        chain_pem=svid.chain_pem,
        key_pem=svid.key_pem,
        roots_pem=svid.roots_pem,
    )
