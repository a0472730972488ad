"""Strict, error-collecting access to parsed YAML.

A :class:`Reader` wraps one mapping of an object. Every getter notes the field as known, checks its
type, and on a fault records a :class:`ResourceError` and returns a harmless default, so that one
pass finds every fault of an object. ``close`` reports the fields nobody asked for, as
``kubectl --validate=strict`` does. An object with any error is refused as a whole.
"""

from __future__ import annotations

import difflib
import ipaddress
from typing import TYPE_CHECKING, Any, TypeVar

from metalmesh.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.workload import IPAddress

PORT_MAX = 65535
#: longest piece of a user's value that an error repeats
_SHOWN = 60

_T = TypeVar("_T")

_TYPE_NAMES = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    float: "a number",
    type(None): "null",
}


class Faults:
    """The errors of one object."""

    def __init__(self, source: str, obj: str) -> None:
        self.source = source
        self.obj = obj
        self.errors: list[ResourceError] = []

    def add(self, field: str, message: str) -> None:
        """Record one fault."""
        self.errors.append(ResourceError(self.source, self.obj, field, message))


class Reader:
    """One mapping of an object, at ``path`` below it."""

    def __init__(self, data: Mapping[Any, Any], path: str, faults: Faults) -> None:
        self._data = data
        self._path = path
        self._known: set[str] = set()
        self.faults = faults

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    # --- structure ---------------------------------------------------------------------------

    def _field(self, name: str) -> str:
        """The dotted path of a field."""
        return f"{self._path}.{name}" if self._path else name

    def fail(self, name: str, message: str) -> None:
        """Record a fault of a field; the empty name means the mapping itself."""
        self.faults.add(self._field(name) if name else self._path, message)

    def ignore(self, *names: str) -> None:
        """Fields that exist in Kubernetes and mean nothing here."""
        self._known.update(names)

    def names(self) -> list[str]:
        """The keys of a mapping whose keys are the user's; other keys are left to ``close``."""
        return [key for key in self._data if isinstance(key, str)]

    def has(self, name: str) -> bool:
        """Whether the field is given (and not null)."""
        self._known.add(name)
        return self._data.get(name) is not None

    def close(self) -> None:
        """Report unknown fields, with the likely intended name."""
        for key in self._data:
            if key in self._known:
                continue
            if not isinstance(key, str):
                self.fail("", f"key {shown(key)} must be a string; quote it")
                continue
            close = difflib.get_close_matches(key, self._known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; remove it"
            self.fail(key[:_SHOWN], f"unknown field{hint}")

    def value(self, name: str, kind: type[_T]) -> _T | None:
        """The field's value when it is of ``kind``; None when absent, null or faulty."""
        self._known.add(name)
        found = self._data.get(name)
        if found is None:
            return None
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            quote = "; quote it" if kind is str and isinstance(found, int | float) else ""
            got = _TYPE_NAMES.get(type(found), type(found).__name__)
            self.fail(name, f"must be {_TYPE_NAMES[kind]}, got {got}{quote}")
            return None
        return found

    def child(self, name: str) -> Reader:
        """The reader of a mapping; an empty one when absent."""
        return Reader(self.value(name, dict) or {}, self._field(name), self.faults)

    def children(self, name: str) -> list[Reader]:
        """The readers of a list of mappings."""
        readers = []
        for index, item in enumerate(self.value(name, list) or ()):
            if isinstance(item, dict):
                readers.append(Reader(item, self._field(f"{name}[{index}]"), self.faults))
            elif item is None:
                self.fail(f"{name}[{index}]", "must be a mapping, got null; write {} for any")
            else:
                self.fail(f"{name}[{index}]", f"must be a mapping, got {shown(item)}")
        return readers

    # --- scalars -----------------------------------------------------------------------------

    def string(self, name: str, default: str = "") -> str:
        """A string."""
        found = self.value(name, str)
        return default if found is None else found

    def required(self, name: str) -> str:
        """A string that must be given and not be empty."""
        if not self.has(name):
            self.fail(name, "is required")
            return ""
        found = self.string(name)
        if not found and isinstance(self._data[name], str):
            self.fail(name, "must not be empty")
        return found

    def integer(self, name: str, low: int, high: int, default: int = 0) -> int:
        """An integer of a range."""
        found = self.value(name, int)
        if found is None:
            return default
        if not low <= found <= high:
            self.fail(name, f"must be {low} to {high}, got {shown(found)}")
            return default
        return found

    def port(self, name: str) -> int:
        """A port, 1 to 65535; 0 when absent."""
        return self.integer(name, 1, PORT_MAX)

    def choice(self, name: str, choices: Iterable[str], default: str = "") -> str:
        """One of a few strings."""
        found = self.string(name, default)
        allowed = list(choices)
        if found != default and found not in allowed:
            self.fail(name, f"must be one of {', '.join(allowed)}, got {shown(found)}")
            return default
        return found

    # --- collections -------------------------------------------------------------------------

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        found = []
        for index, item in enumerate(self.value(name, list) or ()):
            if isinstance(item, str):
                found.append(item)
            else:
                self.fail(f"{name}[{index}]", f"must be a string, got {shown(item)}; quote it")
        return tuple(found)

    def string_map(self, name: str) -> dict[str, str]:
        """A mapping of strings to strings."""
        found = {}
        for key, item in (self.value(name, dict) or {}).items():
            if isinstance(key, str) and isinstance(item, str):
                found[key] = item
            else:
                wrong = item if isinstance(key, str) else key
                self.fail(
                    f"{name}[{shown(key)}]", f"must be a string, got {shown(wrong)}; quote it"
                )
        return found


def read_address(reader: Reader, name: str, text: str) -> IPAddress | None:
    """Parse ``text``, the value of the field ``name``, as an address."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        reader.fail(name, f"{shown(text)} is not an IP address")
        return None


def read_network(reader: Reader, name: str, text: str) -> IPNetwork | None:
    """Parse ``text``, the value of the field ``name``, as a CIDR; host bits are dropped."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        reader.fail(name, f"{shown(text)} is not a CIDR such as 10.0.0.0/8")
        return None


def shown(value: object) -> str:
    """A user's value as an error repeats it: never a container, never long."""
    if isinstance(value, dict | list | tuple | set):
        return _TYPE_NAMES.get(type(value), "a collection")
    if value is None:
        return "null"
    if isinstance(value, int) and abs(value) > 10**_SHOWN:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
