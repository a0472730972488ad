"""What the node agent and ``metalmesh node netns`` remember, and the lock between them.

``run_dir`` lives as long as the namespaces (a reboot clears both): one record per netns that is up,
one for the node's own tables. ``state_dir`` survives a reboot: the last policies received. Files
are replaced by rename. Whoever changes the node's network holds :meth:`NodeState.locked`.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from metalmesh.errors import StoreError
from metalmesh.policy.network_policy import network_policy_from_dict, network_policy_to_dict
from metalmesh.service.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from metalmesh.model.network_policy import CompiledNetworkPolicy
    from metalmesh.model.workload import IPAddress

_POLICIES: Final = "network-policies.json"
_TABLES: Final = "tables.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetnsRecord:
    """A netns that is up: written last by ``netns up``, removed first by ``netns down``."""

    netns: str
    uid: str
    #: inode of the namespace: tells a new one of the same name from the old one
    inode: int
    link: str
    addresses: tuple[str, ...]
    captured: bool
    #: digest of the redirection text, and fingerprints of the tables right after it was loaded
    redirection: str = ""
    tables: Mapping[str, str] = field(default_factory=dict)

    @property
    def ip_addresses(self) -> tuple[IPAddress, ...]:
        """The workload's addresses."""
        return tuple(ip_address(item) for item in self.addresses)


@dataclass(frozen=True, slots=True)
class PolicyState:
    """Policies as last received, and the local workloads the control plane knows."""

    policies: tuple[CompiledNetworkPolicy, ...]
    known_uids: frozenset[str]


class NodeState:
    """Files below ``run_dir`` and ``state_dir``."""

    def __init__(self, run_dir: Path, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._run_dir = run_dir
        self.netns_dir = run_dir / "netns"
        self._saved_policies: Any = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the node's lock; other processes wait."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        with (self._run_dir / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- namespaces that are up ------------------------------------------------------------
    def records(self, *, must_exist: bool = False) -> dict[str, NetnsRecord]:
        """Every netns that is up, by name.

        Without the directory none ever was up; with ``must_exist`` that raises :class:`StoreError`
        (the agent made it, and must not take its loss for workloads that went down).
        """
        try:
            files = sorted(self.netns_dir.iterdir())
        except FileNotFoundError as error:
            if must_exist:
                raise StoreError(
                    f"{self.netns_dir} has vanished; restart metalmesh-node"
                ) from error
            return {}
        found = {}
        for path in (file for file in files if file.suffix == ".json"):
            data = _read(path)
            if data is not None:
                data["addresses"] = tuple(data["addresses"])
                found[path.stem] = NetnsRecord(**data)
        return found

    def write_record(self, record: NetnsRecord) -> None:
        """Announce that a netns is up."""
        _write(self.netns_dir / f"{record.netns}.json", asdict(record))

    def delete_record(self, netns: str) -> None:
        """A netns is no longer up."""
        (self.netns_dir / f"{netns}.json").unlink(missing_ok=True)

    def running(self) -> dict[str, Collection[str]]:
        """Netns name -> uid of the workload it is up for."""
        return {name: (record.uid,) for name, record in self.records().items()}

    # --- tables of the node's own namespace ------------------------------------------------
    def table_marks(self) -> dict[str, dict[str, str]]:
        """Table name -> digest of the text loaded and fingerprint right after."""
        return _read(self._run_dir / _TABLES) or {}

    def write_table_mark(self, table: str, digest: str, fingerprint: str) -> None:
        """Remember what was loaded."""
        marks = self.table_marks()
        marks[table] = {"digest": digest, "fingerprint": fingerprint}
        _write(self._run_dir / _TABLES, marks)

    def forget_table_marks(self) -> None:
        """The tables are gone."""
        (self._run_dir / _TABLES).unlink(missing_ok=True)

    # --- last good policies ----------------------------------------------------------------
    def load_policies(self) -> PolicyState | None:
        """The last policies received; None when there never were any."""
        data = _read(self._state_dir / _POLICIES)
        if data is None:
            return None
        policies = tuple(network_policy_from_dict(item) for item in data["policies"])
        return PolicyState(policies, frozenset(data["knownUids"]))

    def save_policies(self, policies: PolicyState) -> None:
        """Keep policies for the next start; what is saved already is not written again."""
        data = {
            "policies": [network_policy_to_dict(item) for item in policies.policies],
            "knownUids": sorted(policies.known_uids),
        }
        if data != self._saved_policies:
            _write(self._state_dir / _POLICIES, data)
            self._saved_policies = data

    # --- anything else ---------------------------------------------------------------------
    def load_bytes(self, name: str) -> bytes | None:
        """Content of a file in the state directory; None when there is none."""
        try:
            return (self._state_dir / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._state_dir / name} cannot be read: {error}") from error

    def save_bytes(self, name: str, data: bytes) -> None:
        """Replace a file in the state directory."""
        write_file(self._state_dir / name, data)


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file: readers see the old content or the new, never a part."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, mode)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}; is the disk full or read-only?"
        ) from error


def _write(path: Path, data: Any) -> None:
    write_file(path, json.dumps(data, separators=(",", ":")).encode(), 0o644)


def _read(path: Path) -> Any | None:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}; remove it to start afresh") from error
