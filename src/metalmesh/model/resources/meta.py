"""Object metadata and label selectors, as Kubernetes defines them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from metalmesh.model.resources.reader import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.resources.reader import Reader

DEFAULT_NAMESPACE: Final = "default"
NAME_LABEL: Final = "kubernetes.io/metadata.name"

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_SUBDOMAIN: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z"
)
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?\Z")

#: fields the API server fills in; an exported object has them
_SERVER_FIELDS: Final = (
    "uid", "resourceVersion", "generation", "managedFields", "ownerReferences", "finalizers",
    "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName",
)  # fmt: skip

EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """Name, namespace ("" for cluster-wide kinds), labels and annotations."""

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    #: RFC 3339, "" when the object never passed an API server
    creation_timestamp: str = ""

    @property
    def key(self) -> str:
        """``namespace/name``, or the name of a cluster-wide object."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def parse_metadata(reader: Reader, *, namespaced: bool, label_name: bool) -> Metadata:
    """Read ``metadata``; ``label_name``: the name must be a DNS label, not a subdomain."""
    with reader.child("metadata") as meta:
        meta.ignore(*_SERVER_FIELDS)
        name = meta.required("name")
        if name and not (_LABEL if label_name else _SUBDOMAIN).match(name):
            meta.fail("name", f"{shown(name)} must be lower-case letters, digits and dashes"
                      + (", at most 63" if label_name else " or dots, at most 253"))  # fmt: skip
        namespace = meta.string("namespace")
        if namespaced:
            namespace = namespace or DEFAULT_NAMESPACE
            if not _LABEL.match(namespace):
                meta.fail("namespace", f"{shown(namespace)} is not a DNS label of at most 63")
        elif namespace:
            meta.fail("namespace", "this kind is cluster-wide; remove the namespace")
        return Metadata(
            name=name,
            namespace=namespace if namespaced else "",
            labels=parse_labels(meta, "labels"),
            annotations=MappingProxyType(meta.string_map("annotations")),
            creation_timestamp=meta.string("creationTimestamp"),
        )


def parse_labels(reader: Reader, name: str) -> Mapping[str, str]:
    """Read a map of labels, with Kubernetes' syntax of keys and values."""
    labels = reader.string_map(name)
    for key, value in labels.items():
        check_label_key(reader, name, key)
        if not _LABEL_VALUE.match(value):
            reader.fail(
                f"{name}[{shown(key)}]",
                f"value {shown(value)} must be at most 63 letters, digits, -, _ or .",
            )
    return MappingProxyType(labels)


def check_label_key(reader: Reader, name: str, key: str) -> None:
    """Record a fault when ``key`` is not ``[prefix/]name``."""
    prefix, slash, bare = key.rpartition("/")
    if not _LABEL_NAME.match(bare) or (slash and not _SUBDOMAIN.match(prefix)):
        reader.fail(name, f"label key {shown(key)} must be [DNS prefix/]NAME, NAME at most 63")


# --- selectors -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Requirement:
    """One ``matchExpressions`` entry."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Kubernetes' rule: NotIn and DoesNotExist hold for an absent key."""
        value = labels.get(self.key)
        if self.operator == "In":
            return value is not None and value in self.values
        if self.operator == "NotIn":
            return value is None or value not in self.values
        return (value is not None) == (self.operator == "Exists")


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All parts must hold; the empty selector matches everything."""

    match_labels: tuple[tuple[str, str], ...] = ()
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether ``labels`` satisfy every part."""
        return all(labels.get(key) == value for key, value in self.match_labels) and all(
            requirement.matches(labels) for requirement in self.requirements
        )

    @property
    def empty(self) -> bool:
        """Whether it matches everything."""
        return not self.match_labels and not self.requirements


_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")


def parse_label_selector(reader: Reader, name: str) -> LabelSelector:
    """Read a Kubernetes LabelSelector."""
    with reader.child(name) as selector:
        labels = parse_labels(selector, "matchLabels")
        requirements = tuple(map(_requirement, selector.children("matchExpressions")))
    return LabelSelector(tuple(sorted(labels.items())), requirements)


def _requirement(reader: Reader) -> Requirement:
    with reader:
        key = reader.required("key")
        check_label_key(reader, "key", key)
        if not reader.has("operator"):
            reader.fail("operator", f"is required; one of {', '.join(_OPERATORS)}")
        operator = reader.choice("operator", _OPERATORS)
        values = frozenset(reader.strings("values"))
    if operator in ("In", "NotIn") and not values:
        reader.fail("values", f"must not be empty for operator {operator}")
    if operator in ("Exists", "DoesNotExist") and values:
        reader.fail("values", f"must be absent for operator {operator}")
    return Requirement(key, operator, values)


def parse_workload_selector(reader: Reader, name: str) -> LabelSelector | None:
    """Read an Istio WorkloadSelector (``matchLabels`` only); None when absent."""
    if not reader.has(name):
        return None
    with reader.child(name) as selector:
        labels = parse_labels(selector, "matchLabels")
    return LabelSelector(tuple(sorted(labels.items())))
