"""Labs that tests make for themselves: small, with names of their own, always removed."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.driver import Lab, down
from tests.support import hostview


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """A name no lab has, and what the host was like before."""

    name: str
    directory: Path
    before: hostview.View

    def inventory(self, *, routes: dict[str, list[str]] | None = None, **nodes: int) -> Path:
        """Write an inventory of nodes with these indexes, and of the networks behind them."""
        path = self.directory / f"{self.name}.yml"
        hosts = {
            name: {"lab_index": index, "lab_routes": (routes or {}).get(name, [])}
            for name, index in nodes.items()
        }
        path.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        return path

    def up(self, **nodes: int) -> Lab:
        """Bring the lab up with these nodes; one called `one` when none is named."""
        return Lab.up(self.name, self.inventory(**(nodes or {"one": 21})), quiet=True)

    def down(self) -> None:
        """Take the lab down."""
        down(self.name, quiet=True)

    def traces(self) -> hostview.View:
        """What of the lab is on the host."""
        found = hostview.added(self.before, self.name)
        left = {str(path) for path in self.temporary.iterdir()}
        return {**found, "temporary files": left} if left else found

    @property
    def temporary(self) -> Path:
        """Where temporary files go while this lab is there."""
        return self.directory / "temporary"


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A lab to make and to break."""
    found = Sandbox(f"t{secrets.token_hex(3)}", tmp_path, hostview.snapshot())
    found.temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(found.temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield found
    found.down()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of two nodes, for tests that leave it as it was."""
    found = Sandbox(f"t{secrets.token_hex(3)}", tmp_path_factory.mktemp("pair"), {})
    yield found.up(one=21, two=22)
    found.down()
