"""A running control plane with two workloads on two nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.controlplane.conftest import entry
from tests.wire.controlplane.plane import Plane


@pytest.fixture
def plane(tmp_path: Path, evidence) -> Iterator[Plane]:
    found = Plane(tmp_path)
    evidence.files.append(found.log_path)
    found.put("a.yaml", entry("a", "10.0.0.1", labels="{app: a}", node="node1"))
    found.put("b.yaml", entry("b", "10.0.0.2", labels="{app: b}", node="node2"))
    found.start()
    yield found
    found.stop()
