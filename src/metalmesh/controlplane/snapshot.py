"""Values between the parts of the control plane: what was accepted and what is served."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.errors import ResourceError
    from metalmesh.model.resources import Resource

_VERSION_BYTES: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedObject:
    """A valid object in force."""

    id: str  # ``Kind namespace/name``
    resource: Resource
    source: str
    #: RFC 3339: its creationTimestamp, else when it was first accepted; decides who is older
    created: str
    data: Mapping[str, Any]
    #: what it wants for itself alone (addresses), as error messages call it
    claims: tuple[str, ...] = ()

    @property
    def age(self) -> tuple[str, str]:
        """Sorts oldest first, by name within an instant."""
        return self.created, self.id


@dataclass(frozen=True, slots=True)
class Admission:
    """Which objects are in force, and why others are not."""

    objects: Mapping[str, AcceptedObject]
    errors: tuple[ResourceError, ...] = ()
    #: ids whose last good version is served although a newer one was refused
    outdated: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """A status condition, as Kubernetes and Istio write it."""

    type: str
    status: bool
    reason: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """A JSON-able form."""
        return {
            "type": self.type,
            "status": "True" if self.status else "False",
            "reason": self.reason,
            "message": self.message,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedResource:
    """One xDS resource; its version is the hash of its content."""

    name: str
    version: str
    data: bytes
    #: other names it can be asked for by (``network/IP``)
    aliases: tuple[str, ...] = ()
    #: names of resources whose subscribers get this one too (a workload's services)
    groups: tuple[str, ...] = ()
    #: nodes that may see it; None: every node
    nodes: frozenset[str] | None = None

    def visible_to(self, node: str) -> bool:
        """Whether ``node`` may receive it."""
        return self.nodes is None or node in self.nodes


def served_resource(
    name: str,
    data: bytes,
    aliases: tuple[str, ...] = (),
    groups: tuple[str, ...] = (),
    nodes: frozenset[str] | None = None,
) -> ServedResource:
    """A resource with its version computed; equal content gives equal versions for ever."""
    version = blake2b(data, digest_size=_VERSION_BYTES).hexdigest()
    return ServedResource(
        name=name, version=version, data=data, aliases=aliases, groups=groups, nodes=nodes
    )


@dataclass(frozen=True)
class Snapshot:
    """Everything served at one moment: type URL to name to resource."""

    types: Mapping[str, Mapping[str, ServedResource]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def of_type(self, type_url: str) -> Mapping[str, ServedResource]:
        """The resources of one type; empty for a type that is not served."""
        return self.types.get(type_url, {})

    @cached_property
    def _aliases(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        index: dict[tuple[str, str], list[str]] = defaultdict(list)
        for type_url, resources in self.types.items():
            for resource in resources.values():
                for alias in resource.aliases:
                    index[type_url, alias].append(resource.name)
        return {key: tuple(names) for key, names in index.items()}

    @cached_property
    def _groups(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        index: dict[tuple[str, str], list[str]] = defaultdict(list)
        for type_url, resources in self.types.items():
            for resource in resources.values():
                for group in resource.groups:
                    index[type_url, group].append(resource.name)
        return {key: tuple(names) for key, names in index.items()}

    def resolve(self, type_url: str, asked: str) -> frozenset[str]:
        """Names of what a subscriber of ``asked`` (a name or an alias) gets."""
        names = set(self._aliases.get((type_url, asked), ()))
        if asked in self.of_type(type_url):
            names.add(asked)
        for name in tuple(names):
            names.update(self._groups.get((type_url, name), ()))
        return frozenset(names)


def changed_names(old: Snapshot, new: Snapshot) -> dict[str, frozenset[str]]:
    """Names that appeared, changed, moved or went, by type; types without changes are left out."""
    changes = {}
    for type_url in old.types.keys() | new.types.keys():
        before, after = old.of_type(type_url), new.of_type(type_url)
        if before is after:
            continue
        names = {
            name
            for name, resource in after.items()
            if (known := before.get(name)) is not resource
            and (known is None or _differs(known, resource))
        }
        names |= before.keys() - after.keys()
        if names:
            changes[type_url] = frozenset(names)
    return changes


def _differs(one: ServedResource, other: ServedResource) -> bool:
    return one.version != other.version or one.nodes != other.nodes
