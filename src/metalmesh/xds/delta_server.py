"""The server's end of delta xDS for one stream (istio-facts 3.2), without I/O.

Requests go into :meth:`DeltaStream.receive`, changed names into :meth:`DeltaStream.changed`, and
:meth:`DeltaStream.next_response` gives what is to be sent now. One response per type is in flight;
until it is answered, changes only add names to a set. A slow client therefore costs at most the
names of what it has not got, and always gets the newest content.

Types are sent in the order of ``SEND_ORDER``: a policy reaches the client before a workload that
lists it, because a ztunnel ignores a listed policy that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from metalmesh.constants import (
    TYPE_ADDRESS,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
    TYPE_NODE,
)
from metalmesh.errors import ProtocolError
from metalmesh.proto import discovery_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SEND_ORDER: Final = (TYPE_AUTHORIZATION, TYPE_NODE, TYPE_NETWORK_POLICY, TYPE_ADDRESS)
WILDCARD: Final = "*"
#: a client reads at most 200 MiB at once (istio-facts 3.1); much less is kinder to memory
MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
#: names one stream may ask for; a mesh has fewer objects
MAX_SUBSCRIPTIONS: Final = 200_000
#: types one stream may ask for; we serve four, an Envoy asks for about ten
MAX_TYPES: Final = 32


class Resource(Protocol):
    """What the server needs to know of a resource."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...
    def visible_to(self, node: str) -> bool: ...


class ResourceSource(Protocol):
    """The newest content, looked up whenever a response is made."""

    def of_type(self, type_url: str) -> Mapping[str, Resource]: ...
    def resolve(self, type_url: str, asked: str) -> frozenset[str]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request said about an earlier response."""

    type_url: str
    nonce: str
    #: the client's reason for refusing something; "" for an ACK
    error: str = ""


@dataclass(slots=True)
class _Subscription:
    """One type on one stream."""

    wildcard: bool
    #: what was asked for by name or alias
    asked: set[str] = field(default_factory=set)
    #: resource name to the version the client has, as far as we know
    held: dict[str, str] = field(default_factory=dict)
    #: names to look at for the next response
    dirty: set[str] = field(default_factory=set)
    #: names asked for that must be answered even if they do not exist
    owed: set[str] = field(default_factory=set)
    #: an answer is due even when it is empty (first request of a wildcard)
    due: bool = False
    #: nonce of the response in flight; "" when none is
    in_flight: str = ""
    sent: int = 0
    acked: int = 0
    refused: int = 0
    last_error: str = ""


class DeltaStream:
    """The subscriptions of one stream of one node."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._subscriptions: dict[str, _Subscription] = {}
        self._nonce = 0

    def settled(self, type_url: str) -> bool:
        """Whether the client has confirmed everything of a type that it is to have."""
        found = self._subscriptions.get(type_url)
        return found is None or not (found.dirty or found.owed or found.due or found.in_flight)

    # --- requests ----------------------------------------------------------------------------

    def receive(self, request: pb.DeltaDiscoveryRequest, source: ResourceSource) -> Answer | None:
        """Take one request; return what it says about a response, if it does."""
        known = self._subscriptions.get(request.type_url)
        if known is None:
            if not request.type_url:
                raise ProtocolError("request without type_url; say which type is meant")
            if len(self._subscriptions) >= MAX_TYPES:
                raise ProtocolError(f"a stream may subscribe to at most {MAX_TYPES} types")
            self._open(request, source)
            return None
        answer = None
        if request.response_nonce:
            answer = self._answered(known, request)
        self._resubscribe(known, request, source)
        return answer

    def _open(self, request: pb.DeltaDiscoveryRequest, source: ResourceSource) -> None:
        """The first request of a type: no names mean everything (the legacy wildcard).

        What an on-demand client still holds it is subscribed to, as with istiod; an empty version
        stands for a name it waits for.
        """
        subscribed = set(request.resource_names_subscribe)
        unsubscribed = set(request.resource_names_unsubscribe)
        wildcard = (not subscribed or WILDCARD in subscribed) and WILDCARD not in unsubscribed
        versions = dict(request.initial_resource_versions)
        asked = subscribed - unsubscribed - {WILDCARD}
        owed = asked | {name for name, version in versions.items() if not version}
        found = _Subscription(
            wildcard=wildcard,
            asked=asked if wildcard else asked | versions.keys(),
            held={name: version for name, version in versions.items() if version},
            due=wildcard,
        )
        _check_size(found)
        self._subscriptions[request.type_url] = found
        found.owed |= owed
        # everything the client has may be outdated or gone
        found.dirty |= found.held.keys()
        self._mark_wanted(found, request.type_url, found.asked, source)
        if wildcard:
            found.dirty |= source.of_type(request.type_url).keys()

    def _answered(self, known: _Subscription, request: pb.DeltaDiscoveryRequest) -> Answer | None:
        """An ACK or NACK; one with a nonce that is not in flight says nothing."""
        if request.response_nonce != known.in_flight:
            return None
        known.in_flight = ""
        error = ""
        if request.HasField("error_detail"):
            error = request.error_detail.message or f"code {request.error_detail.code}"
            known.refused += 1
            known.last_error = error
        else:
            known.acked += 1
            known.last_error = ""
        return Answer(request.type_url, request.response_nonce, error)

    def _resubscribe(
        self, known: _Subscription, request: pb.DeltaDiscoveryRequest, source: ResourceSource
    ) -> None:
        subscribed = set(request.resource_names_subscribe)
        unsubscribed = set(request.resource_names_unsubscribe)
        if WILDCARD in subscribed and not known.wildcard:
            known.wildcard = known.due = True
            known.dirty |= source.of_type(request.type_url).keys()
        added = subscribed - {WILDCARD}
        known.asked |= added
        # a name asked for again is answered again: the client may have dropped it
        known.owed |= added
        for name in self._mark_wanted(known, request.type_url, added, source):
            known.held.pop(name, None)
        _check_size(known)
        if unsubscribed:
            self._unsubscribe(known, request.type_url, unsubscribed, source)

    def _unsubscribe(
        self,
        known: _Subscription,
        type_url: str,
        names: set[str],
        source: ResourceSource,
    ) -> None:
        """The client drops these by itself: nothing is sent about them any more."""
        if WILDCARD in names:
            known.wildcard = False
        known.asked -= names
        known.owed -= names
        if known.wildcard:
            return
        wanted = self._wanted(known, type_url, source)
        for name in known.held.keys() - wanted:
            del known.held[name]
        known.dirty &= wanted

    @staticmethod
    def _mark_wanted(
        known: _Subscription, type_url: str, asked: Iterable[str], source: ResourceSource
    ) -> set[str]:
        names: set[str] = set()
        for item in asked:
            names |= source.resolve(type_url, item)
        known.dirty |= names
        return names

    @staticmethod
    def _wanted(known: _Subscription, type_url: str, source: ResourceSource) -> set[str]:
        names: set[str] = set()
        for item in known.asked:
            names |= source.resolve(type_url, item)
        return names

    # --- changes and responses ---------------------------------------------------------------

    def changed(self, type_url: str, names: Iterable[str], source: ResourceSource) -> None:
        """Note that resources appeared, changed or went."""
        known = self._subscriptions.get(type_url)
        if known is None:
            return
        if known.wildcard:
            known.dirty.update(names)
            return
        interesting = self._wanted(known, type_url, source) | known.held.keys()
        known.dirty.update(interesting.intersection(names))

    def next_response(self, source: ResourceSource) -> pb.DeltaDiscoveryResponse | None:
        """The response to send now; None when there is nothing to say or answers are awaited."""
        for type_url in self._order():
            known = self._subscriptions[type_url]
            response = self._make(type_url, known, source) if not known.in_flight else None
            if response is not None:
                return response
            if known.dirty:
                return None  # what comes later in the order may depend on this
        return None

    def _order(self) -> list[str]:
        ordered = [url for url in SEND_ORDER if url in self._subscriptions]
        return ordered + [url for url in self._subscriptions if url not in SEND_ORDER]

    def _make(
        self, type_url: str, known: _Subscription, source: ResourceSource
    ) -> pb.DeltaDiscoveryResponse | None:
        """Turn dirty names into content; what turns out unchanged is not sent."""
        response = pb.DeltaDiscoveryResponse(type_url=type_url)
        resources = source.of_type(type_url)
        wanted = None if known.wildcard else self._wanted(known, type_url, source)
        size = 0
        for name in sorted(known.dirty):
            if size >= MAX_RESPONSE_BYTES:
                break  # the rest follows when this is answered
            known.dirty.discard(name)
            resource = resources.get(name)
            visible = resource is not None and resource.visible_to(self.node)
            if resource is None or not visible or (wanted is not None and name not in wanted):
                if known.held.pop(name, None) is not None:
                    response.removed_resources.append(name)
                continue
            if known.held.get(name) == resource.version:
                continue
            known.held[name] = resource.version
            _append(response, type_url, resource)
            size += len(resource.data)
        self._settle_owed(type_url, known, source, response)
        if not (response.resources or response.removed_resources or known.due):
            return None
        self._nonce += 1
        known.due = False
        known.sent += 1
        known.in_flight = response.nonce = f"{self._nonce:x}"
        return response

    def _settle_owed(
        self,
        type_url: str,
        known: _Subscription,
        source: ResourceSource,
        response: pb.DeltaDiscoveryResponse,
    ) -> None:
        """A name that was asked for and does not exist (for this node) is answered as removed."""
        resources = source.of_type(type_url)
        removed = set(response.removed_resources)
        for asked in sorted(known.owed - removed):
            names = source.resolve(type_url, asked)
            if not any(resources[name].visible_to(self.node) for name in names):
                response.removed_resources.append(asked)
        known.owed.clear()

    # --- for people --------------------------------------------------------------------------

    def status(self) -> dict[str, dict[str, object]]:
        """Per type: what was sent and answered (``/debug/syncz``)."""
        return {
            type_url: {
                "wildcard": known.wildcard,
                "subscribed": len(known.asked),
                "held": len(known.held),
                "pending": len(known.dirty),
                "sent": known.sent,
                "acked": known.acked,
                "refused": known.refused,
                "in_flight": bool(known.in_flight),
                "synced": not known.in_flight and not known.dirty and not known.last_error,
                "last_error": known.last_error,
            }
            for type_url, known in self._subscriptions.items()
        }

    @property
    def awaits_answer(self) -> bool:
        """Whether a response is in flight."""
        return any(known.in_flight for known in self._subscriptions.values())


def _append(response: pb.DeltaDiscoveryResponse, type_url: str, resource: Resource) -> None:
    item = response.resources.add(
        name=resource.name, version=resource.version, aliases=resource.aliases
    )
    item.resource.type_url = type_url
    item.resource.value = resource.data


def _check_size(known: _Subscription) -> None:
    if len(known.asked) > MAX_SUBSCRIPTIONS or len(known.held) > MAX_SUBSCRIPTIONS:
        raise ProtocolError(f"a stream may subscribe to at most {MAX_SUBSCRIPTIONS} resources")
