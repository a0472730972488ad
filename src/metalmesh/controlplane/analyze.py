"""What is suspicious about resources although each is valid: ``metalmesh analyze``; pure.

Codes ``IST0...`` are istioctl's; those that Istio has no code for are ``MM0...``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from metalmesh.constants import HOST_NETNS
from metalmesh.model.resources import (
    AuthorizationPolicy,
    PeerAuthentication,
    ServiceAccount,
    ServiceResource,
    WorkloadEntry,
)
from metalmesh.policy.netpol_lint import lint_network_policies
from metalmesh.policy.peer_authentication import selects_workloads
from metalmesh.policy.world import name_of
from metalmesh.render.wds import service_hostname

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from metalmesh.controlplane.compute import ComputeOptions
    from metalmesh.controlplane.snapshot import AcceptedObject, Admission, Condition
    from metalmesh.model.resources import Resource
    from metalmesh.model.resources.meta import LabelSelector
    from metalmesh.policy.world import World


class Level(IntEnum):
    """How bad it is."""

    INFO = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        """As istioctl writes it."""
        return self.name.capitalize()


_LEVELS: Final = {
    "IST0101": (Level.WARNING, "ReferencedResourceNotFound"),
    "IST0106": (Level.ERROR, "SchemaValidationError"),
    "IST0127": (Level.WARNING, "NoMatchingWorkloadsFound"),
    "MM0001": (Level.WARNING, "ServiceWithoutEndpoints"),
    "MM0002": (Level.WARNING, "NetworkPolicyWithoutHbone"),
    "MM0003": (Level.WARNING, "ConflictingPeerAuthentications"),
    "MM0004": (Level.WARNING, "StatusCondition"),
    "MM0005": (Level.WARNING, "NetworkPolicyOnHost"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One finding."""

    code: str
    #: ``Kind namespace/name``, "" of a file that cannot be read
    object: str
    source: str
    text: str

    @property
    def level(self) -> Level:
        """How bad it is."""
        return _LEVELS[self.code][0]

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.object, self.source)))
        return f"{self.level.word} [{self.code}] ({where}) {self.text}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, with istioctl's keys."""
        return {
            "code": self.code,
            "level": self.level.word,
            "name": _LEVELS[self.code][1],
            "origin": self.object or self.source,
            "reference": self.source,
            "message": self.text,
        }


def analyze(
    admission: Admission,
    conditions: Mapping[str, tuple[Condition, ...]],
    world: World,
    options: ComputeOptions,
) -> list[Message]:
    """Everything that was found, the worst first."""
    run = _Run(admission.objects, world, options)
    found = [
        Message(code="IST0106", object=e.obj, source=e.source, text=_joined(e.field, e.message))
        for e in admission.errors
    ]
    found += run.conditions(conditions)
    for item in admission.objects.values():
        match item.resource:
            case AuthorizationPolicy():
                found += run.authorization_policy(item, item.resource)
            case PeerAuthentication():
                found += run.selector(item, item.resource.meta.namespace, item.resource.selector)
            case ServiceResource():
                found += run.service(item, item.resource)
    found += run.peer_authentications()
    found += run.network_policies()
    return sorted(found, key=lambda item: (-item.level, item.object, item.code, item.text))


class _Run:
    def __init__(
        self, objects: Mapping[str, AcceptedObject], world: World, options: ComputeOptions
    ) -> None:
        self._objects = objects
        self._world = world
        self._options = options
        self._root = options.mesh.root_namespace
        resources = [item.resource for item in objects.values()]
        self._entries = [item for item in resources if isinstance(item, WorkloadEntry)]
        self._accounts = {
            (entry.meta.namespace, entry.service_account) for entry in self._entries
        } | {
            (item.meta.namespace, item.meta.name)
            for item in resources
            if isinstance(item, ServiceAccount)
        }

    def conditions(self, found: Mapping[str, tuple[Condition, ...]]) -> Iterator[Message]:
        """What the control plane itself says, where it is not plain acceptance."""
        for key, conditions in found.items():
            for condition in conditions:
                if key in self._objects and (
                    not condition.status or condition.reason == "UnsupportedValue"
                ):
                    yield self._message("MM0004", key, f"{condition.type}: {condition.message}")

    def authorization_policy(
        self, item: AcceptedObject, policy: AuthorizationPolicy
    ) -> Iterator[Message]:
        """Its selector, and the accounts its rules name."""
        yield from self.selector(item, policy.meta.namespace, policy.selector)
        for index, rule in enumerate(policy.rules):
            for source in rule.sources or ():
                for account in _accounts(dict(source), policy.meta.namespace):
                    if account not in self._accounts:
                        text = f"rule {index}: service account {'/'.join(account)} has no workload"
                        yield self._message("IST0101", item.id, text)

    def selector(
        self, item: AcceptedObject, namespace: str, selector: LabelSelector | None
    ) -> Iterator[Message]:
        """A selector that selects nobody."""
        if selector is None or selector.empty:
            return
        if not any(
            selector.matches(entry.labels) and namespace in (entry.meta.namespace, self._root)
            for entry in self._entries
        ):
            labels = ",".join(f"{key}={value}" for key, value in selector.match_labels)
            text = f"No matching workloads for this resource with the following labels: {labels}"
            yield self._message("IST0127", item.id, text)

    def service(self, item: AcceptedObject, service: ServiceResource) -> Iterator[Message]:
        """Endpoints, and for each port."""
        if not service.selector:
            return
        key = f"{service.meta.namespace}/{service_hostname(service, self._options.mesh)}"
        endpoints = self._world.state.endpoints.get(key, {})
        if not endpoints:
            labels = ",".join(f"{name}={value}" for name, value in service.selector)
            yield self._message("MM0001", item.id, f"no workload has the labels {labels}")
            return
        for port in service.ports:
            known = self._world.state.services[key].ports.get(port.port)
            if known == 0 and not any(port.port in ports for ports in endpoints.values()):
                text = f"no workload names a port {port.target!r}, to which port {port.port} leads"
                yield self._message("MM0001", item.id, text)

    def peer_authentications(self) -> Iterator[Message]:
        """Several that select one workload: the oldest counts."""
        in_order = sorted(self._objects.values(), key=lambda item: item.age)
        for entry in sorted(self._entries, key=lambda entry: entry.meta.key):
            selecting = [item for item in in_order if _selects(item.resource, entry)]
            for item in selecting[1:]:
                text = f"has no effect on {entry.meta.key}: {selecting[0].id} is older"
                yield self._message("MM0003", item.id, text)

    def network_policies(self) -> Iterator[Message]:
        """Rules for captured workloads that forget the mesh's own port."""
        for finding in lint_network_policies(self._world):
            yield self._message("MM0002", f"NetworkPolicy {finding.policy}", finding.text)
        hosts = {uid for uid, netns in self._world.netns.items() if netns == HOST_NETNS}
        for _, policy in sorted(self._world.state.network_policies.items()):
            on_host = sorted(item.uid for item in policy.selected if item.uid in hosts)
            names = ", ".join(name_of(self._world.state.workloads[uid]) for uid in on_host)
            if names:
                text = (
                    f"holds inside of HBONE only for {names}: a machine's own namespace has no "
                    "packet rules of ours"
                )
                yield self._message("MM0005", f"NetworkPolicy {policy.key}", text)

    def _message(self, code: str, key: str, text: str) -> Message:
        return Message(code=code, object=key, source=self._objects[key].source, text=text)


def _selects(policy: Resource, entry: WorkloadEntry) -> bool:
    """Whether a PeerAuthentication is for this workload in particular."""
    return (
        isinstance(policy, PeerAuthentication)
        and policy.meta.namespace == entry.meta.namespace
        and selects_workloads(policy)
        and policy.selector is not None
        and policy.selector.matches(entry.labels)
    )


def _accounts(source: Mapping[str, tuple[str, ...]], namespace: str) -> Iterable[tuple[str, str]]:
    """The accounts that one source names in full."""
    for text in (*source.get("principals", ()), *source.get("notPrincipals", ())):
        parts = text.split("/")
        if "*" not in text and len(parts) == 5 and (parts[1], parts[3]) == ("ns", "sa"):
            yield parts[2], parts[4]
    for text in (*source.get("serviceAccounts", ()), *source.get("notServiceAccounts", ())):
        before, slash, name = text.partition("/")
        yield (before, name) if slash else (namespace, text)


def _joined(*parts: str) -> str:
    return ": ".join(filter(None, parts))
