"""``metalmesh apply`` and the module ``resource`` share one store."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.metalmesh.ambient.plugins.module_utils import _resources

from metalmesh.cli.store import Store
from metalmesh.controlplane.edits import plan_apply, store_path
from metalmesh.model.resources import ParsedObject, parse_documents

POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: demo}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}]}
"""
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n"


@pytest.mark.parametrize("text", [POLICY, NAMESPACE])
def test_files_are_where_ansible_looks_for_them(text: str) -> None:
    """Both write one object per file of the same name."""
    key = _resources.parse_key(yaml.safe_load(text), "x")
    assert store_path(str(key)) == key.path


def test_a_file_stays_ansibles_when_apply_changes_it(tmp_path: Path) -> None:
    """So that a play still prunes what it owns."""
    root = tmp_path / "store"
    path = root / "AuthorizationPolicy/demo/deny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(_resources.render(yaml.safe_load(POLICY), "shop", yaml.safe_dump))
    config = {"component": "controlplane", "server_names": ["cp1"], "store_dir": str(root)}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    store = Store(tmp_path / "c.yaml")
    wanted = [
        item
        for item in parse_documents(POLICY.replace("other", "x"), "-")
        if isinstance(item, ParsedObject)
    ]
    store.write(plan_apply(store.scan(), wanted))
    assert _resources.owner_of(path.read_text()) == "shop"
    assert yaml.safe_load(path.read_text()) == wanted[0].data
