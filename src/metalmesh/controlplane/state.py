"""The control plane's own files: last good objects, allocated addresses, status, token key."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from metalmesh.controlplane.admission import rebuild
from metalmesh.errors import ResourceError, StoreError
from metalmesh.model.resources import ParsedObject, parse_object
from metalmesh.pki.keys import key_to_pem, make_key, parse_key
from metalmesh.service.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from metalmesh.controlplane.snapshot import AcceptedObject
    from metalmesh.model.workload import IPAddress

_OBJECTS: Final = "accepted.json"
_VIPS: Final = "service-addresses.json"
_STATUS: Final = "status.json"
_HEALTH: Final = "health.json"
_TOKEN_KEY: Final = "node-token-key.pem"  # noqa: S105 - a file's name
_MODE: Final = 0o600
_MODE_STATUS: Final = 0o644


class StateDirectory:
    """Files below one directory; every write is atomic."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        #: what the files hold, by a hash; a content that is there already is not written again
        self._written: dict[str, bytes] = {}
        #: the saved form of each object, made once per version of it
        self._texts: dict[str, tuple[AcceptedObject, str]] = {}

    def load_objects(self) -> tuple[dict[str, AcceptedObject], list[ResourceError]]:
        """What was in force when the service last ran, and what of it no longer parses."""
        items: list[tuple[ParsedObject, str]] = []
        errors: list[ResourceError] = []
        for entry in self._load(_OBJECTS, []):
            for found in parse_object(entry["data"], entry["source"]):
                if isinstance(found, ResourceError):
                    errors.append(found)
                else:
                    items.append((found, entry["created"]))
        return rebuild(items), errors

    def save_objects(self, objects: Mapping[str, AcceptedObject]) -> None:
        """Remember what is in force."""
        texts: dict[str, tuple[AcceptedObject, str]] = {}
        for key in sorted(objects):
            item = objects[key]
            known = self._texts.get(key)
            texts[key] = known if known and known[0] is item else (item, _saved_form(item))
        self._texts = texts
        body = ",\n".join(text for _, text in texts.values())
        self._save(_OBJECTS, f"[\n{body}\n]\n", _MODE)

    def load_vips(self) -> dict[str, tuple[IPAddress, ...]]:
        """Allocated service addresses."""
        return {
            key: tuple(map(ipaddress.ip_address, texts))
            for key, texts in self._load(_VIPS, {}).items()
        }

    def save_vips(self, vips: Mapping[str, tuple[IPAddress, ...]]) -> None:
        """Remember allocated service addresses."""
        addresses = {key: list(map(str, item)) for key, item in sorted(vips.items())}
        self._save(_VIPS, json.dumps(addresses) + "\n", _MODE)

    def load_health(self) -> dict[str, dict[str, str]]:
        """What each node last said of workloads that are not well."""
        found: dict[str, dict[str, str]] = self._load(_HEALTH, {})
        return found

    def save_health(self, health: Mapping[str, Mapping[str, str]]) -> None:
        """Remember that, for a start before the nodes have said it again."""
        self._save(_HEALTH, json.dumps(health, default=dict) + "\n", _MODE)

    def save_status(self, status: Mapping[str, Any]) -> None:
        """Publish the status of every object, for people and tools on this machine."""
        self._save(_STATUS, json.dumps(status) + "\n", _MODE_STATUS)

    def token_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that signs node tokens; made at first use."""
        path = self.directory / _TOKEN_KEY
        try:
            pem = path.read_bytes()
        except FileNotFoundError:
            key = make_key()
            self._write(_TOKEN_KEY, key_to_pem(key).encode(), _MODE)
            return key
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; give the service read access") from error
        found = parse_key(pem, str(path))
        if not isinstance(found, ec.EllipticCurvePrivateKey) or found.curve.name != "secp256r1":
            raise StoreError(f"{path}: not an ECDSA P-256 key; remove it, and nodes join again")
        return found

    def _load(self, name: str, default: Any) -> Any:
        path = self.directory / name
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return default
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read ({error}); restore or remove it") from error

    def _save(self, name: str, text: str, mode: int) -> None:
        data = text.encode()
        digest = hashlib.sha256(data).digest()
        if self._written.get(name) != digest:
            self._write(name, data, mode)
            self._written[name] = digest

    def _write(self, name: str, data: bytes, mode: int) -> None:
        try:
            write_atomic(self.directory / name, data, mode)
        except OSError as error:
            raise StoreError(f"{self.directory / name}: cannot be written: {error}") from error


def _saved_form(item: AcceptedObject) -> str:
    return json.dumps({"source": item.source, "created": item.created, "data": item.data})
