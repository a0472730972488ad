"""Local workloads of a data worker: identity, addresses, policies, routes, open connections."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from metalmesh.errors import IdentityError, PolicyDeniedError
from metalmesh.model.authorization import Authorization
from metalmesh.model.identity import SpiffeId, parse_spiffe_id
from metalmesh.model.network_policy import CompiledNetworkPolicy, Protocol
from metalmesh.policy import l4, network_policy
from metalmesh.ztunnel.worker.flow import CONNECT, DENY, NETWORK_POLICY
from metalmesh.ztunnel.worker.metrics import Party

if TYPE_CHECKING:
    from typing import Protocol as Interface

    from metalmesh.ztunnel.messages import AddWorkload, Policies, UpdateWorkload
    from metalmesh.ztunnel.worker.logs import Field, LogWriter

    class Judged(Interface):
        """An inbound connection under the workload's policies."""

        @property
        def subject(self) -> l4.Connection:
            """What the policies look at."""

        @property
        def tunneled(self) -> bool:
            """Whether it came through HBONE."""

        def refuse(self, error: str, flags: str) -> None:
            """The policies changed and forbid it: close it at once."""

        def admit(self) -> None:
            """The policies have arrived: decide again."""


#: connections a workload lets wait for policies or routes; more are refused
MAX_WAITING: Final = 4096
_MAX_VERDICTS: Final = 4096
UNKNOWN_WORKLOAD: Final = "failed to fetch information about local workload"


class Workload:
    """What this worker knows about one local workload."""

    def __init__(self, message: AddWorkload, netns_fd: int, log: LogWriter) -> None:
        self.uid = message.uid
        self.log = log
        self.netns_fd = netns_fd
        #: every inbound connection, from before its first check to its end
        self.inbound: dict[Judged, None] = {}
        #: those among them that no policy has been able to decide yet
        self.undecided: dict[Judged, None] = {}
        self._policies: Policies | None = None
        self._verdicts: dict[tuple[l4.Connection, bool], tuple[str, str, tuple[l4.Note, ...]]] = {}
        self._authorizations: tuple[Authorization, ...] = ()
        self._network_policies: tuple[CompiledNetworkPolicy, ...] = ()
        self.update(message)

    def update(self, message: AddWorkload | UpdateWorkload) -> None:
        """Take the workload's present description over."""
        self.name = message.name
        self.namespace = message.namespace
        self.service_account = message.service_account
        self.identity: SpiffeId | None = None
        if message.identity:
            try:
                self.identity = parse_spiffe_id(message.identity)
            except IdentityError:
                self.identity = None  # as good as not known: nothing is served without one
        self.addresses = frozenset(str(ip_address(text)) for text in message.addresses)
        labels = dict(message.labels)
        if self.identity is not None:
            labels["principal"] = str(self.identity)
        self.party = Party(labels)

    @property
    def unknown_error(self) -> str:
        """The error of connections that came before the control plane told us enough."""
        return f"{UNKNOWN_WORKLOAD}: {self.service_account}.{self.namespace} ({self.name})"

    # --- policies
    @property
    def decidable(self) -> bool:
        """Whether everything that may decide a connection is here."""
        return (
            self.identity is not None and self._policies is not None and not self._policies.missing
        )

    def set_policies(self, message: Policies) -> None:
        """New policies: re-evaluate what is open, decide what waits."""
        self._policies = None  # should they turn out unreadable, nothing new is let in
        self._verdicts.clear()
        self._authorizations = tuple(map(Authorization.from_dict, message.authorizations))
        self._network_policies = tuple(
            map(network_policy.network_policy_from_dict, message.network_policies)
        )
        self._policies = message
        if message.missing:
            return
        if message.reevaluate:
            for connection in [c for c in self.inbound if c not in self.undecided]:
                self._close_denied(connection)
        self.decide_waiting()

    def decide_waiting(self) -> None:
        """Something that was missing has arrived."""
        if self.decidable:
            waiting, self.undecided = self.undecided, {}
            for connection in waiting:
                connection.admit()

    def judge(self, subject: l4.Connection, *, tunneled: bool) -> None:
        """PolicyDeniedError if the policies forbid a connection; its flag is in ``args[1]``.

        Verdicts are remembered until the policies change: one client asks the same thing often.
        """
        key = (subject, tunneled)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= _MAX_VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[key] = self._decide(subject, tunneled=tunneled)
        error, flag, notes = verdict
        if self.log.wants(self.log.rbac_level):
            for note in notes:
                fields = self._subject_fields(subject)
                if note.policy:
                    fields.append(("policy", note.policy, False))
                self.log.line(self.log.rbac_level, "rbac", note.text, fields)
        if error:
            raise PolicyDeniedError(error, flag)

    def _decide(
        self, subject: l4.Connection, *, tunneled: bool
    ) -> tuple[str, str, tuple[l4.Note, ...]]:
        """Error and flag of a refusal ("" when allowed), and what the policies had to say.

        NetworkPolicy is enforced here for tunneled connections only, whose port the node's
        packet rules cannot see; plaintext passes those rules.
        """
        verdict = l4.evaluate(self._authorizations, subject)
        notes = (*verdict.notes, l4.Note(verdict.reason, verdict.policy))
        if not verdict.allowed:
            return verdict.error, DENY, notes
        if not tunneled or self._policies is None or not self._policies.inner_enforcement:
            return "", "", notes
        admitted = network_policy.evaluate_ingress(
            self._network_policies,
            self.uid,
            subject.source_ip,
            Protocol.TCP,
            subject.destination_port,
        )
        if admitted.allowed:
            return "", "", (*notes, l4.Note(admitted.message))
        return l4.REJECTION + admitted.message, NETWORK_POLICY, (*notes, l4.Note(admitted.message))

    def _subject_fields(self, subject: l4.Connection) -> list[Field]:
        fields = [
            ("src.addr", str(subject.source_ip), False),
            ("dst.addr", f"{subject.destination_ip}:{subject.destination_port}", False),
            ("dst.workload", self.name, True),
        ]
        if subject.identity is not None:
            fields.append(("src.identity", str(subject.identity), True))
        return fields

    def _close_denied(self, connection: Judged) -> None:
        try:
            self.judge(connection.subject, tunneled=connection.tunneled)
        except PolicyDeniedError:
            self.log.line(
                "info",
                "proxy::connection_manager",
                "connection closed because it's no longer allowed after a policy update",
                self._subject_fields(connection.subject),
            )
            connection.refuse(l4.POLICY_CHANGE, DENY)

    def undecided_verdict(self) -> tuple[str, str, str]:
        """Status, error and flag for a connection whose policies did not arrive in time."""
        missing = self._policies.missing if self._policies is not None else ()
        if self.identity is None or not missing:
            return "503", self.unknown_error, CONNECT
        return "401", f"{l4.REJECTION}policy not known yet: {', '.join(missing)}", DENY
