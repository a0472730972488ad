"""What the control plane keeps across restarts."""

from __future__ import annotations

import ipaddress
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from metalmesh.controlplane.state import StateDirectory
from metalmesh.errors import StoreError
from tests.unit.controlplane.conftest import entry


def test_objects_come_back_as_they_were(tmp_path: Path, admit_files: Any) -> None:
    accepted = admit_files({"a.yaml": entry("a", "10.0.0.1", labels="{app: x}")}).objects
    StateDirectory(tmp_path).save_objects(accepted)
    objects, errors = StateDirectory(tmp_path).load_objects()
    assert objects == accepted
    assert errors == []


def test_last_good_version_survives_a_restart(tmp_path: Path, admit_files: Any) -> None:
    first = admit_files({"a.yaml": entry("a", "10.0.0.1")})
    StateDirectory(tmp_path).save_objects(first.objects)
    saved, _ = StateDirectory(tmp_path).load_objects()
    second = admit_files({"a.yaml": "a: ["}, saved)
    assert list(second.objects) == ["WorkloadEntry demo/a"]


def test_saved_object_that_is_no_longer_valid_is_reported(tmp_path: Path) -> None:
    data = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "A"}}
    saved = [{"source": "a.yaml", "created": "", "data": data}]
    (tmp_path / "accepted.json").write_text(json.dumps(saved))
    objects, errors = StateDirectory(tmp_path).load_objects()
    assert objects == {}
    assert "metadata.name" in str(errors[0])


def test_addresses_of_services_come_back(tmp_path: Path) -> None:
    vips = {"demo/a": (ipaddress.ip_address("10.96.1.1"), ipaddress.ip_address("fd00::1"))}
    StateDirectory(tmp_path).save_vips(vips)
    assert StateDirectory(tmp_path).load_vips() == vips


def test_empty_state_is_a_first_start(tmp_path: Path) -> None:
    assert StateDirectory(tmp_path).load_objects() == ({}, [])
    assert StateDirectory(tmp_path).load_vips() == {}


def test_damaged_state_is_an_error_and_never_taken_for_empty(tmp_path: Path) -> None:
    (tmp_path / "accepted.json").write_text("{")
    with pytest.raises(StoreError, match=r"accepted\.json: cannot be read .*restore or remove it"):
        StateDirectory(tmp_path).load_objects()


def test_token_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    key = StateDirectory(tmp_path).token_key()
    again = StateDirectory(tmp_path).token_key()
    assert key.private_numbers() == again.private_numbers()
    path = tmp_path / "node-token-key.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_failed_write_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"gone/status\.json: cannot be written"):
        StateDirectory(tmp_path / "gone").save_status({"objects": []})
