"""Resources by a line each, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from metalmesh.controlplane.admission import Scan, admit
from metalmesh.controlplane.snapshot import AcceptedObject, Admission
from metalmesh.model.resources import parse_documents

NOW = "2026-01-01T00:00:00Z"
Admit = Callable[..., Admission]


def entry(name: str, address: str, *, labels: str = "{}", node: str = "", created: str = "") -> str:
    """YAML of a WorkloadEntry in the namespace demo."""
    meta = f"name: {name}, namespace: demo, labels: {labels}"
    if node:
        meta += f", annotations: {{ambient.metalmesh.io/node: {node}}}"
    if created:
        meta += f", creationTimestamp: {created}"
    return (
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        f"metadata: {{{meta}}}\nspec: {{address: {address}, serviceAccount: {name}}}\n"
    )


def scan_of(files: Mapping[str, str], unreadable: Mapping[str, str] | None = None) -> Scan:
    """A scan as if these files were in the store."""
    parsed = {name: tuple(parse_documents(text, name)) for name, text in files.items()}
    return Scan(parsed, unreadable or {})


@pytest.fixture
def admit_files() -> Admit:
    """``admit_files({file: text}, previous)``."""

    def run(
        files: Mapping[str, str],
        previous: Admission | Mapping[str, AcceptedObject] | None = None,
        *,
        unreadable: Mapping[str, str] | None = None,
        now: str = NOW,
    ) -> Admission:
        known = previous.objects if isinstance(previous, Admission) else previous or {}
        return admit(scan_of(files, unreadable), known, now)

    return run
