"""One object from the YAML of its spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from metalmesh.errors import ResourceError
from metalmesh.model.resources import KINDS, ParsedObject, parse_documents

Read = Callable[..., Any]


@pytest.fixture
def read() -> Read:
    """``read(kind, spec yaml)`` gives the resource, or the texts of its errors."""

    def parse(kind: str, spec: str, meta: str = "{name: a, namespace: demo}") -> Any:
        if not KINDS[kind].namespaced:
            meta = meta.replace(", namespace: demo", "")
        version = KINDS[kind].api_versions[0]
        body = "\n".join(f"  {line}" for line in spec.splitlines())
        text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {meta}\nspec:\n{body}\n"
        results = parse_documents(text, "f")
        errors = [item for item in results if isinstance(item, ResourceError)]
        if errors:
            return [f"{error.field}: {error.message}" for error in errors]
        (found,) = results
        assert isinstance(found, ParsedObject)
        return found.resource

    return parse
