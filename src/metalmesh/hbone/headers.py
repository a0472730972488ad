"""Header blocks of CONNECT requests and answers.

Both sides announce SETTINGS_HEADER_TABLE_SIZE 0, so a block has no state and the ones we send
can be put together from parts that are encoded once. Blocks of literals without Huffman coding
(ours, and any stateless peer's) are read by :func:`decode_plain` at a tenth of the price of the
``hpack`` library, which reads everything else.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from metalmesh.errors import ProtocolError
from metalmesh.hbone.frames import COMPRESSION_ERROR, H2Error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hpack import Decoder

IPAddress = IPv4Address | IPv6Address

#: names of the static table that occur here (RFC 7541 appendix A)
_STATIC_NAMES: Final = {1: ":authority", 2: ":method", 4: ":path", 6: ":scheme", 8: ":status"}
_STATIC_FIELDS: Final = {
    2: (":method", "GET"),
    3: (":method", "POST"),
    4: (":path", "/"),
    5: (":path", "/index.html"),
    6: (":scheme", "http"),
    7: (":scheme", "https"),
    8: (":status", "200"),
    9: (":status", "204"),
    10: (":status", "206"),
    11: (":status", "304"),
    12: (":status", "400"),
    13: (":status", "404"),
    14: (":status", "500"),
}
_INDEX_OF_NAME: Final = {name: index for index, name in _STATIC_NAMES.items()}
_CONNECT: Final = b"\x02\x07CONNECT"
#: where our own requests begin to differ from each other
_FORWARDED: Final = b"\x00\x09forwarded"
_STATUS_200: Final = b"\x88"


class MalformedError(ProtocolError):
    """A header block is well coded but says something a CONNECT must not say."""


# --- writing ---------------------------------------------------------------------------------
def _length(size: int) -> bytes:
    """A 7-bit prefix integer without the Huffman flag (RFC 7541 section 5.1)."""
    if size < 127:
        return bytes((size,))
    size -= 127
    out = bytearray(b"\x7f")
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def literal(name: str, value: str) -> bytes:
    """One header as a literal without indexing and without Huffman coding."""
    raw = value.encode()
    return _literal_name(name) + _length(len(raw)) + raw


@lru_cache(maxsize=64)
def _literal_name(name: str) -> bytes:
    index = _INDEX_OF_NAME.get(name)
    if index is not None:
        return bytes((index,))
    raw = name.encode()
    return b"\x00" + _length(len(raw)) + raw


@lru_cache(maxsize=1024)
def connect_prefix(authority: str, baggage: str) -> bytes:
    """The constant part of a request: method, authority, baggage."""
    return _CONNECT + literal(":authority", authority) + literal("baggage", baggage)


def connect_block(prefix: bytes, forwarded: str, traceparent: str) -> bytes:
    """A whole request; ``forwarded`` as made by ``baggage.forwarded_for``."""
    return prefix + literal("forwarded", forwarded) + literal("traceparent", traceparent)


@lru_cache(maxsize=256)
def response_block(status: str, baggage: str = "") -> bytes:
    """An answer; only 200 carries baggage (istio-facts 2.2)."""
    head = _STATUS_200 if status == "200" else literal(":status", status)
    return head + literal("baggage", baggage) if baggage else head


def format_authority(address: str, port: int) -> str:
    """``ip:port`` with brackets around IPv6."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


# --- reading ---------------------------------------------------------------------------------
def decode_plain(block: bytes) -> list[tuple[str, str]] | None:
    """Read a block of non-Huffman literals and static fields; ``None`` if it has more."""
    fields: list[tuple[str, str]] = []
    position, end = 0, len(block)
    try:
        while position < end:
            first = block[position]
            position += 1
            if first & 0x80:
                fields.append(_STATIC_FIELDS[first & 0x7F])
                continue
            if first & 0x60 or first & 0x0F == 15:  # indexing, size update, long index
                return None
            if first & 0x0F:
                name = _STATIC_NAMES[first & 0x0F]
            else:
                raw, position = _string(block, position)
                name = raw.decode("ascii")
            raw, position = _string(block, position)
            fields.append((name, raw.decode()))
    except (IndexError, KeyError, ValueError):
        return None
    return fields


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """A string literal; ValueError when it is Huffman coded or too long for here."""
    size = block[position]
    position += 1
    if size >= 127:
        if size != 127:
            raise ValueError("huffman")
        more = block[position]
        size += more & 127
        position += 1
        if more & 128:
            more = block[position]
            size += more << 7
            position += 1
            if more & 128:
                raise ValueError("long")
    end = position + size
    if end > len(block):
        raise ValueError("short")
    return block[position:end], end


class HeaderDecoder:
    """Decodes the blocks of one connection, in order; remembers answers that repeat."""

    def __init__(self, max_list_bytes: int) -> None:
        self._decoder: Decoder | None = None
        self._max_list_bytes = max_list_bytes
        self._stateless = False
        self._seen: dict[bytes, dict[str, str]] = {}
        self._head = b""
        self._head_fields: dict[str, str] = {}

    def forbid_table(self) -> None:
        """The peer has acknowledged SETTINGS_HEADER_TABLE_SIZE 0."""
        self._stateless = True
        if self._decoder is not None:
            self._decoder.max_allowed_table_size = 0

    def decode(self, block: bytes) -> dict[str, str]:
        """The headers of a block; repeated ones are joined by a comma.

        Raises :class:`H2Error` when the block cannot be decoded (the connection is lost) and
        :class:`MalformedError` when only this stream must be refused.
        """
        known = self._seen.get(block) or self._decode_tail(block)
        if known is not None:
            return known
        fields = decode_plain(block)
        if fields is None or sum(len(n) + len(v) + 32 for n, v in fields) > self._max_list_bytes:
            fields = self._decode_any(block)
        headers = _merge(fields)
        if self._stateless and len(block) < 256 and "traceparent" not in headers:
            if len(self._seen) >= 64:
                self._seen.clear()
            self._seen[block] = headers
        elif self._stateless:
            self._learn_head(block)
        return headers

    def _learn_head(self, block: bytes) -> None:
        """Remember what a request has in common with the peer's next ones.

        Literals mean the same wherever a block is cut between two of them.
        """
        head = block[: max(0, block.find(_FORWARDED))]
        fields = decode_plain(head) if head else None
        if fields is not None:
            self._head, self._head_fields = head, _merge(fields)

    def _decode_tail(self, block: bytes) -> dict[str, str] | None:
        """A request that begins like the one before; None if it must be read from the start."""
        head = self._head
        if not head or not block.startswith(head):
            return None
        tail = decode_plain(block[len(head) :])
        if tail is None or len(block) + 64 * (len(tail) + len(self._head_fields)) > (
            self._max_list_bytes
        ):
            return None
        headers = self._head_fields.copy()
        for name, value in tail:
            if name in headers or name[:1] == ":" or name != name.lower():
                return None
            headers[name] = value
        return headers

    def _decode_any(self, block: bytes) -> list[tuple[str, str]]:
        # Its Huffman table takes several megabytes: a process that never meets such a block,
        # as between our own proxies, does without.
        from hpack import Decoder
        from hpack.exceptions import HPACKError

        if self._decoder is None:
            self._decoder = Decoder(max_header_list_size=self._max_list_bytes)
            if self._stateless:
                self._decoder.max_allowed_table_size = 0
        try:
            return [(str(item[0]), str(item[1])) for item in self._decoder.decode(block)]
        except (HPACKError, ValueError, IndexError) as error:
            raise H2Error(COMPRESSION_ERROR, f"header block: {error}") from error


def _merge(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    regular = False
    for name, value in fields:
        if name.startswith(":"):
            if regular or name in headers:
                raise MalformedError(f"header {name}: repeated or after a regular header")
        else:
            regular = True
            if name != name.lower():
                raise MalformedError(f"header {name!r}: names are lower case in HTTP/2")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


@lru_cache(maxsize=256)
def parse_authority(authority: str) -> tuple[IPAddress | str, int]:
    """``(address, port)`` of a CONNECT's authority; a host name stays text.

    Raises :class:`MalformedError` unless there are both a host and a port of 1..65535.
    """
    host, colon, port_text = authority.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not (port_text.isascii() and port_text.isdigit()):
        raise MalformedError(f"authority {authority!r}: expected HOST:PORT")
    port = int(port_text[:6])
    if not 0 < port < 65536 or len(port_text) > 5:
        raise MalformedError(f"authority {authority!r}: port must be 1 to 65535")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        if bracketed or ":" in host:
            raise MalformedError(f"authority {authority!r}: not an address") from None
        return host, port
    if bracketed != (address.version == 6):
        raise MalformedError(f"authority {authority!r}: brackets belong to IPv6 addresses only")
    return address, port


def check_connect(headers: Mapping[str, str]) -> str:
    """The authority of a plain CONNECT request; MalformedError for any other request."""
    method = headers.get(":method", "")
    if method != "CONNECT":
        raise MalformedError(f"method {method!r}: only CONNECT is served here")
    for name in (":scheme", ":path", ":protocol"):
        if name in headers:
            raise MalformedError(f"CONNECT with {name}: only plain CONNECT is served here")
    authority = headers.get(":authority", "")
    if not authority:
        raise MalformedError("CONNECT without :authority")
    return authority
