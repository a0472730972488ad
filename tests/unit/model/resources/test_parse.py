"""Text to objects: strictness, independence of documents, errors that name what is wrong."""

from __future__ import annotations

import json
import sys
from subprocess import run

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metalmesh.errors import ResourceError
from metalmesh.model.resources import KINDS, ParsedObject, parse_documents, parse_object
from metalmesh.model.resources.parse import MAX_TEXT_BYTES


def _errors(text: str) -> list[str]:
    return [
        str(item) for item in parse_documents(text, "f.yaml") if isinstance(item, ResourceError)
    ]


def _ids(text: str) -> list[str]:
    return [item.id for item in parse_documents(text, "f.yaml") if isinstance(item, ParsedObject)]


NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n"


def test_an_object_knows_its_name_source_and_content() -> None:
    (found,) = parse_documents(NAMESPACE, "f.yaml")
    assert isinstance(found, ParsedObject)
    assert (found.id, found.source) == ("Namespace demo", "f.yaml")
    assert found.data == yaml.safe_load(NAMESPACE)


def test_empty_documents_and_comments_are_no_objects() -> None:
    assert parse_documents("", "f") == []
    assert _ids(f"---\n# nothing\n---\n{NAMESPACE}---\n") == ["Namespace demo"]


def test_list_objects_are_unfolded() -> None:
    """``kubectl get -o yaml`` prints a List."""
    item = "- {apiVersion: v1, kind: Namespace, metadata: {name: %s}}\n"
    assert _ids("apiVersion: v1\nkind: List\nitems:\n" + item % "a" + item % "b") == [
        "Namespace a",
        "Namespace b",
    ]


def test_namespaced_kinds_default_to_the_default_namespace() -> None:
    assert _ids("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n") == [
        "ServiceAccount default/a"
    ]


WRONG = {
    "unknown kind": (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}",
        "f.yaml: Pod a: kind: unknown kind 'Pod'; known: AuthorizationPolicy, Namespace",
    ),
    "unknown version": (
        "apiVersion: v2\nkind: Namespace\nmetadata: {name: a}",
        "f.yaml: Namespace a: apiVersion: 'v2' is not an apiVersion of Namespace; use v1",
    ),
    "group of another kind": (
        "apiVersion: networking.istio.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}",
        "apiVersion: 'networking.istio.io/v1' is not an apiVersion of NetworkPolicy; use "
        "networking.k8s.io/v1",
    ),
    "no kind": ("apiVersion: v1", "f.yaml: object: kind: is required"),
    "no name": (
        "apiVersion: v1\nkind: Namespace",
        "f.yaml: Namespace: metadata.name: is required",
    ),
    "bad name": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: Demo_1}",
        "metadata.name: 'Demo_1' must be lower-case letters, digits and dashes, at most 63",
    ),
    "namespace of a cluster-wide kind": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}",
        "Namespace a: metadata.namespace: this kind is cluster-wide; remove the namespace",
    ),
    "misspelt field": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, lables: {}}",
        "Namespace a: metadata.lables: unknown field; did you mean labels?",
    ),
    "unknown field": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\nxyz: 1",
        "Namespace a: xyz: unknown field; remove it",
    ),
    "number as label": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {n: 5}}",
        "metadata.labels['n']: must be a string, got 5; quote it",
    ),
    "wrong type": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: [x]}",
        "metadata.labels: must be a mapping, got a list",
    ),
    "number as name": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: 5}",
        "metadata.name: must be a string, got an integer; quote it",
    ),
    "key that is not a string": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n5: x",
        "Namespace a: key 5 must be a string; quote it",
    ),
    "not a mapping": ("[1, 2]", "f.yaml: an object is a mapping, got a list"),
    "not YAML": ("a: [", "f.yaml: not valid YAML: "),
    "repeated key": (
        "a: 1\nb: 2\na: 3",
        "not valid YAML: key 'a' is given twice (line 3, column 1)",
    ),
    "binary": ("kind: !!binary aGVsbG8=", "holds b'hello', which JSON cannot express"),
    "not a number": ("kind: .nan", "holds nan, which JSON cannot express"),
    "contains itself": ("kind: &a [*a]", "holds more than 100000 values"),
    "python object": ("kind: !!python/object:os.system {}", "could not determine a constructor"),
    "deep nesting": ("{a: " * 3000, "not valid YAML"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_fault_is_an_error_that_names_file_object_field_and_remedy(case: tuple[str, str]) -> None:
    text, expected = case
    errors = _errors(text)
    assert any(expected in error for error in errors), errors
    assert _ids(text) == []


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_faulty_document_never_hides_its_neighbours(case: tuple[str, str]) -> None:
    assert _ids(f"{NAMESPACE}---\n{case[0]}\n---\n{NAMESPACE}") == ["Namespace demo"] * 2


def test_line_numbers_count_from_the_start_of_the_file() -> None:
    (error,) = _errors(f"{NAMESPACE}---\n\na: b: c\n")
    assert "(line 6, column 5)" in error


def test_every_fault_of_an_object_is_reported_at_once() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: A}\nspec: {ports: [{port: 0}], x: 1}"
    fields = [
        error.field for error in parse_documents(text, "f") if isinstance(error, ResourceError)
    ]
    assert fields == ["metadata.name", "spec.ports[0].port", "spec.x"]


def test_alias_bomb_costs_nothing() -> None:
    """A kilobyte of aliases can mean gigabytes of values."""
    lines = ["a0: &a0 [" + "x," * 9 + "x]"]
    lines += [f"a{n}: &a{n} [" + f"*a{n - 1}," * 9 + f"*a{n - 1}]" for n in range(1, 12)]
    (error,) = _errors("\n".join(lines))
    assert "holds more than 100000 values; split it, or remove YAML aliases" in error


def test_huge_file_is_refused_unread() -> None:
    (error,) = _errors("#" * (MAX_TEXT_BYTES + 1))
    assert "file exceeds" in error


def test_timestamps_stay_text() -> None:
    (found,) = parse_documents(
        NAMESPACE.replace("}", ", creationTimestamp: 2026-01-02T03:04:05Z}"), "f"
    )
    assert isinstance(found, ParsedObject)
    assert found.resource.meta.creation_timestamp == "2026-01-02T03:04:05Z"


def test_fields_of_the_api_server_are_accepted() -> None:
    """Exported objects have them."""
    data = yaml.safe_load(NAMESPACE)
    data["metadata"] |= {"uid": "u", "resourceVersion": "1", "managedFields": [{}], "generation": 1}
    data["status"] = {"phase": "Active"}
    assert isinstance(parse_object(data, "f")[0], ParsedObject)


KEYS = st.sampled_from(
    ["kind", "apiVersion", "metadata", "spec", "name", "namespace", "labels", "selector", "ports",
     "port", "matchLabels", "rules", "from", "to", "source", "ingress", "mtls", "mode", "address",
     "podSelector", "ipBlock", "cidr", "except", "portLevelMtls", "80", "when", "key", "values"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([*KINDS, *(kind.api_versions[0] for kind in KINDS.values()), "10.0.0.0/8"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(KEYS, SCALARS.filter(lambda key: key == key)), inner, max_size=5),
    ),
    max_leaves=25,
)


@st.composite
def _objects(draw: st.DrawFn) -> object:
    """Nearly right: a known kind and version over arbitrary content."""
    name = draw(st.sampled_from(sorted(KINDS)))
    return {
        "apiVersion": KINDS[name].api_versions[0],
        "kind": name,
        "metadata": draw(st.one_of(st.just({"name": "a"}), VALUES)),
        "spec": draw(VALUES),
        **draw(st.dictionaries(KEYS, VALUES, max_size=2)),
    }


@given(st.one_of(VALUES, _objects()))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_only_resource_errors_come_out_of_arbitrary_content(data: object) -> None:
    for found in parse_object(data, "f"):
        assert isinstance(found, ParsedObject | ResourceError)
        if isinstance(found, ParsedObject):
            json.dumps(found.data)


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_only_resource_errors_come_out_of_arbitrary_text(text: str) -> None:
    assert all(isinstance(f, ParsedObject | ResourceError) for f in parse_documents(text, "f"))


def test_parsing_is_light_to_import() -> None:
    """Ansible modules import it on every node."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import metalmesh.model.resources; "
        "heavy = {'google.protobuf', 'grpc', 'cryptography', 'asyncio', 'pyroute2'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
