"""YAML text to resources: every document is one object, and every fault an error that names it.

Documents are independent: a faulty one never hides its neighbours. Only text that is not YAML at
all costs the whole file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from metalmesh.errors import ResourceError
from metalmesh.model.resources.core import (
    Namespace,
    NodeResource,
    ServiceAccount,
    parse_namespace,
    parse_node,
    parse_service_account,
)
from metalmesh.model.resources.meta import Metadata, parse_metadata
from metalmesh.model.resources.network_policy import NetworkPolicyResource, parse_network_policy
from metalmesh.model.resources.policies import (
    AuthorizationPolicy,
    PeerAuthentication,
    parse_authorization_policy,
    parse_peer_authentication,
)
from metalmesh.model.resources.reader import Faults, Reader, shown
from metalmesh.model.resources.service import ServiceResource, parse_service
from metalmesh.model.resources.service_entry import ServiceEntry, parse_service_entry
from metalmesh.model.resources.workload_entry import WorkloadEntry, parse_workload_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: etcd refuses objects above 1.5 MiB; a file may hold several
MAX_TEXT_BYTES: Final = 8 * 1024 * 1024

#: more than any real object; a cycle of aliases never ends
MAX_VALUES: Final = 100_000

Resource = (
    Namespace
    | NodeResource
    | ServiceAccount
    | ServiceResource
    | ServiceEntry
    | WorkloadEntry
    | PeerAuthentication
    | AuthorizationPolicy
    | NetworkPolicyResource
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and how it is read."""

    group: str
    versions: tuple[str, ...]
    parse: Callable[[Reader, Metadata], Resource]
    namespaced: bool = True
    #: the name must be a DNS label rather than a subdomain
    label_name: bool = False

    @property
    def api_versions(self) -> list[str]:
        """Every accepted ``apiVersion``."""
        prefix = f"{self.group}/" if self.group else ""
        return [prefix + version for version in self.versions]


KINDS: Final[dict[str, Kind]] = {
    "Namespace": Kind("", ("v1",), parse_namespace, namespaced=False, label_name=True),
    "Node": Kind("", ("v1",), parse_node, namespaced=False),
    "ServiceAccount": Kind("", ("v1",), parse_service_account),
    "Service": Kind("", ("v1",), parse_service, label_name=True),
    "WorkloadEntry": Kind(
        "networking.istio.io", ("v1", "v1beta1", "v1alpha3"), parse_workload_entry
    ),
    "ServiceEntry": Kind("networking.istio.io", ("v1", "v1beta1", "v1alpha3"), parse_service_entry),
    "PeerAuthentication": Kind("security.istio.io", ("v1", "v1beta1"), parse_peer_authentication),
    "AuthorizationPolicy": Kind("security.istio.io", ("v1", "v1beta1"), parse_authorization_policy),
    "NetworkPolicy": Kind("networking.k8s.io", ("v1",), parse_network_policy),
}


@dataclass(frozen=True, slots=True)
class ParsedObject:
    """One valid object."""

    #: ``Kind namespace/name``: unique, and what every message calls it
    id: str
    resource: Resource
    #: the mapping it was read from
    data: Mapping[str, Any]
    #: file, or ``-``
    source: str


def parse_documents(text: str, source: str) -> list[ParsedObject | ResourceError]:
    """Parse every document of ``text``; errors stand where their objects would.

    An object with several faults gives several errors. ``List`` objects are unfolded.
    """
    if len(text) > MAX_TEXT_BYTES:
        return [ResourceError(source, "", "", f"file exceeds {MAX_TEXT_BYTES} bytes; split it")]
    results: list[ParsedObject | ResourceError] = []
    for first_line, document in _split(text):
        try:
            results += parse_object(_load(document), source)
        except yaml.YAMLError as error:
            fault = f"not valid YAML: {_where(error, first_line)}"
            results.append(ResourceError(source, "", "", fault))
        except RecursionError:
            results.append(ResourceError(source, "", "", "not valid YAML: nested too deeply"))
        except ValueError as error:  # PyYAML lets int() and chr() errors of odd scalars through
            results.append(ResourceError(source, "", "", f"not valid YAML: {error}"))
    return results


def parse_object(data: object, source: str) -> list[ParsedObject | ResourceError]:
    """Parse one document's content; ``None`` (an empty document) is no object."""
    if data is None:
        return []
    if not isinstance(data, dict):
        return [ResourceError(source, "", "", f"an object is a mapping, got {shown(data)}")]
    if data.get("kind") == "List" and isinstance(data.get("items"), list):
        return [found for item in data["items"] for found in parse_object(item, source)]
    name = object_id(data)
    faults = Faults(source, name)
    fault = _json_fault(data)
    if fault:
        return [ResourceError(source, name, "", fault)]
    reader = Reader(data, "", faults)
    kind = _kind(reader)
    if kind is None:
        return list(faults.errors)
    meta = parse_metadata(reader, namespaced=kind.namespaced, label_name=kind.label_name)
    resource = kind.parse(reader, meta)
    reader.close()
    if faults.errors:
        return list(faults.errors)
    return [ParsedObject(name, resource, data, source)]


def _json_fault(data: object) -> str:
    """Why ``data`` is not an object of JSON of sensible size; "" when it is.

    YAML can say more than JSON (binaries, sets, values that contain themselves) and can expand a
    short text to gigabytes by its aliases.
    """
    pending, values = [data], 0
    while pending:
        item = pending.pop()
        values += 1
        if values > MAX_VALUES:
            return f"holds more than {MAX_VALUES} values; split it, or remove YAML aliases"
        if isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item
        elif not isinstance(item, str | int | float | None) or item != item:
            return f"holds {shown(item)}, which JSON cannot express; use plain values"
    return ""


def object_id(data: Mapping[Any, Any]) -> str:
    """``Kind namespace/name`` as far as the mapping tells."""
    kind = data.get("kind")
    meta = data.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    name, namespace = meta.get("name"), meta.get("namespace")
    known = KINDS.get(kind) if isinstance(kind, str) else None
    if known is not None and not known.namespaced:
        namespace = None
    elif known is not None and not namespace:
        namespace = "default"
    label = kind if isinstance(kind, str) and kind else "object"
    parts = [str(part)[:253] for part in (namespace, name) if isinstance(part, str) and part]
    return f"{label[:63]} {'/'.join(parts)}".strip()


def _kind(reader: Reader) -> Kind | None:
    """Judge ``apiVersion`` and ``kind`` together."""
    name, version = reader.required("kind"), reader.required("apiVersion")
    if not name or not version:
        return None
    kind = KINDS.get(name)
    if kind is None:
        reader.fail("kind", f"unknown kind {shown(name)}; known: {', '.join(sorted(KINDS))}")
        return None
    if version not in kind.api_versions:
        reader.fail(
            "apiVersion",
            f"{shown(version)} is not an apiVersion of {name}; use {kind.api_versions[0]}",
        )
        return None
    return kind


# --- YAML ------------------------------------------------------------------------------------

#: a document starts at a line of three dashes; block text is always indented
_SEPARATOR: Final = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)
_BASE: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # type: ignore[misc]
    """PyYAML's safe loader, minus timestamps (kept as text), plus an error on repeated keys."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in _BASE.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {shown(key.value)} is given twice", key.start_mark
                    )
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Documents with the number of their first line, so that one's fault stays its own."""
    start, line = 0, 1
    for match in _SEPARATOR.finditer(text):
        yield line, text[start : match.start()]
        line += text.count("\n", start, match.start())
        start = match.start()
    yield line, text[start:]


def _load(document: str) -> Any:
    loader = _Loader(document)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _where(error: yaml.YAMLError, first_line: int) -> str:
    """The fault with its place in the file, on one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    place = f" (line {first_line + mark.line}, column {mark.column + 1})" if mark else ""
    return " ".join(f"{problem}{place}".split())
