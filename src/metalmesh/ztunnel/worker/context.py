"""What the parts of a worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.constants import CONNECT_TIMEOUT_SECONDS, WORKLOAD_INFO_TIMEOUT_SECONDS
from metalmesh.net.netns import CurrentNetns
from metalmesh.ztunnel.messages import NeedCertificate
from metalmesh.ztunnel.worker.attempts import ATTEMPT_SECONDS
from metalmesh.ztunnel.worker.certificates import CertificateStore
from metalmesh.ztunnel.worker.flow import Recorder
from metalmesh.ztunnel.worker.loop import Deadlines, Loop
from metalmesh.ztunnel.worker.metrics import Metrics
from metalmesh.ztunnel.worker.revoked import Revoked
from metalmesh.ztunnel.worker.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from metalmesh.ztunnel.messages import Message
    from metalmesh.ztunnel.worker.logs import LogWriter

    class Expiring(Protocol):
        """Something that must happen soon."""

        def expire(self) -> None:
            """It did not."""


#: a CONNECT must be answered within this; the other side allows itself 10 s to connect
ANSWER_SECONDS: Final = CONNECT_TIMEOUT_SECONDS + 5


class Context:
    """The loop, the books, and the way to the main process."""

    def __init__(self, loop: Loop, log: LogWriter, send: Callable[[Message], None]) -> None:
        self.loop = loop
        self.log = log
        self.send = send
        #: trust domains of peers that are ours besides that of the certificate in use
        self.trust_domains: frozenset[str] = frozenset()
        self.netns = CurrentNetns()
        self.metrics = Metrics()
        self.revoked = Revoked(self.metrics)
        self.recorder = Recorder(loop, log, self.metrics)
        self.sources = Sources(loop, send)
        self.certificates = CertificateStore(
            loop, lambda identity: send(NeedCertificate(identity=identity))
        )
        self.dials = _deadlines(loop, CONNECT_TIMEOUT_SECONDS)
        self.handshakes = _deadlines(loop, CONNECT_TIMEOUT_SECONDS)
        self.answers = _deadlines(loop, ANSWER_SECONDS)
        #: connections whose endpoint has not answered, though another one might
        self.hurried = _deadlines(loop, ATTEMPT_SECONDS)
        #: connections that wait for routes or policies
        self.undecided = _deadlines(loop, WORKLOAD_INFO_TIMEOUT_SECONDS)


def _deadlines(loop: Loop, seconds: float) -> Deadlines[Expiring]:
    return Deadlines(loop, seconds, lambda item: item.expire())
