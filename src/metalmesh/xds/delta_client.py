"""The client's end of delta xDS (istio-facts 3.2), without I/O.

The shell opens a stream, sends what :meth:`DeltaClient.open_stream` returns, hands every response
to :meth:`DeltaClient.receive` and sends the answer that comes back. What was received survives
streams, so that a reconnect only transfers what changed meanwhile.

Good resources of a response are applied even when others in it are refused; the refused ones keep
their last good version and are named in the NACK as ``name: reason; name: reason``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from metalmesh.errors import ProtocolError
from metalmesh.proto import discovery_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: longest NACK text; a control plane logs it
MAX_NACK_CHARACTERS: Final = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscription:
    """One resource type, subscribed by wildcard."""

    type_url: str
    #: bytes and resource name to a value; raises ProtocolError saying ``name: reason``
    decode: Callable[[bytes, str], Any]
    #: whether the client counts as synced only when this type has been answered
    required: bool = True


@dataclass(frozen=True, slots=True)
class Update:
    """What one response changed."""

    type_url: str
    changed: Mapping[str, Any]
    removed: tuple[str, ...] = ()
    #: read from the saved state, not from a control plane
    restored: bool = False


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Who we are to the control plane."""

    id: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Held:
    """A resource as last accepted."""

    version: str
    data: bytes


class DeltaClient:
    """Subscriptions and the resources held for them.

    ``on_update`` is called once per response, synchronously, with the decoded resources; it
    returns reasons by name for those it cannot take (usually none).
    """

    def __init__(
        self,
        node: NodeInfo,
        subscriptions: Sequence[Subscription],
        on_update: Callable[[Update], Mapping[str, str] | None],
    ) -> None:
        self._node = node
        self._subscriptions = {item.type_url: item for item in subscriptions}
        self._on_update = on_update
        self._held: dict[str, dict[str, _Held]] = {url: {} for url in self._subscriptions}
        self._answered: set[str] = set()

    @property
    def synced(self) -> bool:
        """Whether every required type has been answered and accepted at least once."""
        return all(
            url in self._answered for url, item in self._subscriptions.items() if item.required
        )

    def pending(self) -> list[str]:
        """Type URLs that have not been answered yet, required ones only."""
        return [
            url
            for url, item in self._subscriptions.items()
            if item.required and url not in self._answered
        ]

    def names(self, type_url: str) -> Iterable[str]:
        """Names of the resources held."""
        return self._held[type_url].keys()

    def open_stream(self) -> list[pb.DeltaDiscoveryRequest]:
        """The first requests of a new stream, in the order of subscription."""
        return [self._first_request(url) for url in self._subscriptions]

    def _first_request(self, type_url: str) -> pb.DeltaDiscoveryRequest:
        request = pb.DeltaDiscoveryRequest(
            type_url=type_url,
            node=pb.Node(id=self._node.id),
            initial_resource_versions={
                name: held.version for name, held in self._held[type_url].items()
            },
        )
        request.node.metadata.update(dict(self._node.metadata))
        return request

    def receive(self, response: pb.DeltaDiscoveryResponse) -> pb.DeltaDiscoveryRequest:
        """Apply a response; return the ACK or NACK to send."""
        subscription = self._subscriptions.get(response.type_url)
        if subscription is None:
            raise ProtocolError(
                f"xDS response of type {response.type_url!r}, which was never subscribed"
            )
        rejected = self._apply(subscription, response, restored=False)
        answer = pb.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        if rejected:
            answer.error_detail.message = "; ".join(
                f"{name}: {reason}" for name, reason in rejected.items()
            )[:MAX_NACK_CHARACTERS]
        else:
            self._answered.add(response.type_url)
        return answer

    def _apply(
        self, subscription: Subscription, response: pb.DeltaDiscoveryResponse, *, restored: bool
    ) -> dict[str, str]:
        """Decode, hand to ``on_update`` and remember; return what was rejected and why."""
        changed: dict[str, Any] = {}
        received: dict[str, _Held] = {}
        rejected: dict[str, str] = {}
        for resource in response.resources:
            try:
                changed[resource.name] = subscription.decode(resource.resource.value, resource.name)
                received[resource.name] = _Held(resource.version, resource.resource.value)
            except ProtocolError as error:
                rejected[resource.name] = str(error).removeprefix(f"{resource.name}: ")
        # a name both removed and sent exists: the resource wins
        removed = tuple(name for name in response.removed_resources if name not in changed)
        refused = self._on_update(Update(subscription.type_url, changed, removed, restored)) or {}
        rejected.update(refused)
        held = self._held[subscription.type_url]
        for name in removed:
            held.pop(name, None)
        held.update((name, item) for name, item in received.items() if name not in refused)
        return rejected

    # --- last good state -------------------------------------------------------------------
    def save(self) -> bytes:
        """Everything held, for :meth:`restore` after a restart; holds no secrets."""
        saved = pb.SavedState()
        for url in sorted(self._answered):
            group = saved.types.add(type_url=url)
            for name, held in self._held[url].items():
                resource = group.resources.add(name=name, version=held.version)
                resource.resource.value = held.data
        return bytes(saved.SerializeToString())

    def restore(self, data: bytes) -> int:
        """Apply saved state as if it had just been received; return how many resources it held.

        The control plane sends what differs once a stream is open. What can no longer be decoded
        (another version wrote it) is left out and will be sent again.
        """
        saved = pb.SavedState()
        try:
            saved.ParseFromString(data)
        except DecodeError as error:
            raise ProtocolError(f"saved xDS state is not readable: {error}") from error
        count = 0
        for group in saved.types:
            subscription = self._subscriptions.get(group.type_url)
            if subscription is not None:
                self._apply(subscription, group, restored=True)
                self._answered.add(group.type_url)
                count += len(group.resources)
        return count
