"""Checked readers of wire fields, shared by the codecs.

Each reader is told ``where`` it reads (the field's dotted path): its error says what is wrong
there. The codecs put the resource's name in front; the text becomes a NACK's ``error_detail``.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message

from metalmesh.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.authorization import IPNetwork
    from metalmesh.model.workload import IPAddress

PORT_MAX = 65535

_M = TypeVar("_M", bound=Message)
_V = TypeVar("_V")


def parse_message(kind: type[_M], data: bytes) -> _M:
    """Parse ``data`` as one message of ``kind``."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a {kind.DESCRIPTOR.full_name} message ({error})") from error


def read_address(data: bytes, where: str) -> IPAddress:
    """Read an address of 4 or 16 bytes."""
    if len(data) not in (4, 16):
        raise ProtocolError(f"{where}: an address has 4 or 16 bytes, got {len(data)}")
    return ipaddress.ip_address(data)


def read_network(data: bytes, length: int, where: str) -> IPNetwork:
    """Read an address range: 4 or 16 bytes and a prefix length; host bits are dropped."""
    address = read_address(data, where)
    if length > address.max_prefixlen:
        raise ProtocolError(
            f"{where}: a prefix length is at most {address.max_prefixlen} bits, got {length}"
        )
    return ipaddress.ip_network((address, length), strict=False)


def read_port(value: int, where: str) -> int:
    """Read a port number; 0 is left for the caller to judge."""
    if value > PORT_MAX:
        raise ProtocolError(f"{where}: a port is at most {PORT_MAX}, got {value}")
    return value


def read_enum(value: int, table: Mapping[Any, _V], where: str) -> _V:
    """Translate an enum number; an unknown one is an error, as in ztunnel."""
    try:
        return table[value]
    except KeyError:
        raise ProtocolError(f"{where}: unknown value {value}") from None


def required(value: str, where: str) -> str:
    """Return ``value``, which must not be empty."""
    if not value:
        raise ProtocolError(f"{where}: must not be empty")
    return value
