"""Plans of the control plane's store."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.metalmesh.ambient.plugins.module_utils import _resources
from ansible_collections.metalmesh.ambient.plugins.module_utils._io import ModuleError


def dump(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False))


def service(name: str, port: int = 80, namespace: str | None = "demo") -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": port}]}}


def stored(*definitions: dict[str, Any], owner: str = "me") -> dict[str, str]:
    keys = _resources.keys_of(list(definitions))
    return {
        key.path: _resources.render(definition, owner, dump)
        for key, definition in zip(keys, definitions, strict=True)
    }


def plan(live: dict[str, str], *definitions: dict[str, Any]) -> list[Any]:
    return _resources.plan_present(live, list(definitions), "me", dump, yaml.safe_load)


def test_new_changed_and_same_objects() -> None:
    live = stored(service("same"), service("changed", 80))
    changes = plan(live, service("same"), service("changed", 81), service("new"))
    assert [(str(change.key), change.verb) for change in changes] == [
        ("Service demo/changed", "updated"),
        ("Service demo/new", "created"),
    ]


def test_file_of_somebody_else_that_says_the_same_is_left_alone() -> None:
    """Comments, order and quotes do not count."""
    live = {
        "Service/demo/web.yaml": "# mine\nspec: {ports: [{port: 80}]}\n"
        + dump({"metadata": {"namespace": "demo", "name": "web"}, "kind": "Service"})
    }
    assert plan(live, service("web")) == []


def test_file_that_is_no_yaml_is_replaced() -> None:
    live = {"Service/demo/web.yaml": "{"}

    def load(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return None

    changes = _resources.plan_present(live, [service("web")], "me", dump, load)
    assert [change.verb for change in changes] == ["updated"]


def test_pruning_takes_what_the_same_owner_wrote_and_nothing_else() -> None:
    live = stored(service("mine")) | stored(service("theirs"), owner="them")
    live["Service/demo/by-hand.yaml"] = dump(service("by-hand"))
    pruned = _resources.plan_pruned(live, "me", [], set())
    assert [str(change.key) for change in pruned] == ["Service demo/mine"]
    assert _resources.plan_pruned(live, "me", ["WorkloadEntry"], set()) == []
    assert _resources.plan_pruned(live, "me", [], {"Service/demo/mine.yaml"}) == []


def test_objects_made_once_are_found_by_their_kind() -> None:
    namespace = {"kind": "Namespace", "metadata": {"name": "demo", "labels": {"a": "b"}}}
    other = {"kind": "Namespace", "metadata": {"name": "demo"}}
    assert _resources.existing(stored(namespace), [other], ["Namespace"]) == [other]
    assert _resources.existing(stored(namespace), [other], []) == []


def test_absent_needs_kind_and_name_only() -> None:
    live = stored(service("web"))
    wanted = [{"kind": "Service", "metadata": {"name": "web", "namespace": "demo"}}]
    assert [change.verb for change in _resources.plan_absent(live, wanted)] == ["removed"]
    assert _resources.plan_absent({}, wanted) == []


def test_objects_without_a_namespace_are_in_the_default_one_or_of_the_cluster() -> None:
    keys = _resources.keys_of(
        [service("web", namespace=None), {"kind": "Namespace", "metadata": {"name": "demo"}}]
    )
    assert [key.path for key in keys] == [
        "Service/default/web.yaml",
        "Namespace/_cluster/demo.yaml",
    ]


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ("text", "definition[0]: is str"),
        ({"metadata": {"name": "a"}}, "kind: '' is no kind"),
        ({"kind": "../Service", "metadata": {"name": "a"}}, "is no kind"),
        ({"kind": "Service", "metadata": {"name": "../../etc/passwd"}}, "metadata.name"),
        ({"kind": "Service", "metadata": {"name": "a", "namespace": "../x"}}, "metadata.namespace"),
        ({"kind": "Service"}, "metadata.name: ''"),
        ({"kind": "Node", "metadata": {"name": "a", "namespace": "b"}}, "a Node has none"),
    ],
)
def test_object_that_names_no_file_is_refused(definition: Any, words: str) -> None:
    """Names become paths; the message says which object and which field."""
    with pytest.raises(ModuleError) as error:
        _resources.keys_of([definition])
    assert words in str(error.value)


def test_object_given_twice_is_refused() -> None:
    with pytest.raises(ModuleError, match="Service demo/web is given twice"):
        _resources.keys_of([service("web"), service("web", 81)])


def test_header_names_the_owner() -> None:
    text = next(iter(stored(service("web"), owner="workload/node1").values()))
    assert _resources.owner_of(text) == "workload/node1"
    assert _resources.owner_of("kind: Service\n") is None


def test_matches_by_kind_namespace_and_name() -> None:
    assert _resources.matches(service("web"), "Service", "", "web")
    assert not _resources.matches(service("web"), "", "other", "")
    assert not _resources.matches(None, "", "", "")


def test_what_was_wrong_before_does_not_refuse_what_is_new() -> None:
    """One bad file by hand must not stop every play; it is pointed out."""
    finding = {"object": "Service demo/x", "field": "spec", "message": "is wrong"}
    report = {
        "errors": [
            {"source": "Service/demo/new.yaml", **finding},
            {"source": "Service/demo/old.yaml", **finding},
        ],
        "warnings": [
            {"source": "A/d/new.yaml", "object": "A d/new", "reason": "Odd", "message": "look"},
            {"source": "A/d/old.yaml", "object": "A d/old", "reason": "Odd", "message": "look"},
        ],
    }
    changed = {"Service/demo/new.yaml", "A/d/new.yaml"}
    errors, warnings = _resources.sort_findings(report, changed)
    assert errors == ["Service/demo/new.yaml: Service demo/x: spec: is wrong"]
    assert warnings == [
        "Service/demo/old.yaml: Service demo/x: spec: is wrong (this was so before)",
        "A d/new: Odd: look",
    ]
