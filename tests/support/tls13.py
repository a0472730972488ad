"""A small TLS 1.3 decryptor for recordings (RFC 8446), independent of scapy and of OpenSSL.

It reads the cleartext of HBONE connections from a key log (the SSLKEYLOGFILE format). It refuses
what it does not know: other versions than TLS 1.3, HelloRetryRequest, KeyUpdate.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from metalmesh.constants import PORT_HBONE
from tests.support.packets import Endpoint, Stream

HANDSHAKE, APPLICATION_DATA = 22, 23
CLIENT_HELLO, SERVER_HELLO, CERTIFICATE, CERTIFICATE_REQUEST = 1, 2, 11, 13
CERTIFICATE_VERIFY, FINISHED, KEY_UPDATE, COMPRESSED_CERTIFICATE = 15, 20, 24, 25
EXTENSION_ALPN, EXTENSION_VERSIONS, EXTENSION_SERVER_NAME = 16, 43, 0
TLS_1_3: Final = 0x0304
COMPRESSION_ZLIB: Final = 1
SUITES: Final = {
    0x1301: (hashes.SHA256(), 16, AESGCM),
    0x1302: (hashes.SHA384(), 32, AESGCM),
    0x1303: (hashes.SHA256(), 32, ChaCha20Poly1305),
}
Secrets = Mapping[tuple[str, bytes], bytes]


class TlsError(AssertionError):
    """The recording is not the TLS 1.3 connection it should be."""


@dataclasses.dataclass(frozen=True)
class TlsConnection:
    """What both sides of one connection said."""

    client: Endpoint
    server: Endpoint
    version: int
    """Negotiated version; 0x0304 is TLS 1.3."""
    cipher_suite: int
    server_name: bool
    """Whether the client sent a server name (SNI)."""
    certificate_requested: bool
    """Whether the server asked for a client certificate."""
    client_certificates: tuple[bytes, ...]
    """DER, leaf first; empty when the client gave none."""
    server_certificates: tuple[bytes, ...]
    client_proved: bool
    """Whether the client signed the handshake with its certificate's key."""
    client_data: bytes
    """Decrypted application data of the client."""
    server_data: bytes

    @property
    def client_uris(self) -> tuple[str, ...]:
        """URI SANs of the client's leaf."""
        return leaf_uris(self.client_certificates)

    @property
    def server_uris(self) -> tuple[str, ...]:
        """URI SANs of the server's leaf."""
        return leaf_uris(self.server_certificates)


def leaf_uris(chain: tuple[bytes, ...]) -> tuple[str, ...]:
    """URI subject alternative names of the first certificate; empty without one."""
    if not chain:
        return ()
    leaf = x509.load_der_x509_certificate(chain[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


def parse_keylog(text: str) -> Secrets:
    """Secrets by label and client random."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and not line.startswith("#"):
            found[words[0], bytes.fromhex(words[1])] = bytes.fromhex(words[2])
    return found


def decrypt(streams: list[Stream], keylog: str, *, port: int = PORT_HBONE) -> list[TlsConnection]:
    """Decrypt every connection to the port that was recorded from its SYN on.

    A connection whose secrets are not in the key log is an error: it would go unexamined.
    """
    secrets = parse_keylog(keylog)
    from_start = [stream for stream in streams if stream.complete and stream.data]
    connections = []
    for client in from_start:
        if client.destination.port != port:
            continue
        server = next(
            (
                stream
                for stream in from_start
                if (stream.source, stream.destination) == (client.destination, client.source)
            ),
            None,
        )
        if server is not None:
            connections.append(_decrypt_connection(client, server, secrets))
    return connections


def _decrypt_connection(client: Stream, server: Stream, secrets: Secrets) -> TlsConnection:
    what = f"{client.source} -> {client.destination}"
    client_hello = _hello(client.data, CLIENT_HELLO, what)
    server_hello = _hello(server.data, SERVER_HELLO, what)
    random = client_hello[2:34]
    suite, server_extensions = _parse_server_hello(server_hello)
    version = int.from_bytes(server_extensions.get(EXTENSION_VERSIONS, server_hello[:2]), "big")
    if version != TLS_1_3 or suite not in SUITES:
        raise TlsError(f"{what}: version {version:#06x}, suite {suite:#06x} is not TLS 1.3")
    from_client = _Side("CLIENT", random, suite, secrets, what).read(client.data)
    from_server = _Side("SERVER", random, suite, secrets, what).read(server.data)
    return TlsConnection(
        client=client.source,
        server=client.destination,
        version=version,
        cipher_suite=suite,
        server_name=EXTENSION_SERVER_NAME in _client_extensions(client_hello),
        certificate_requested=CERTIFICATE_REQUEST in from_server.kinds,
        client_certificates=from_client.certificates,
        server_certificates=from_server.certificates,
        client_proved=CERTIFICATE_VERIFY in from_client.kinds,
        client_data=bytes(from_client.data),
        server_data=bytes(from_server.data),
    )


class _Side:
    """Decryption of what one side sent."""

    def __init__(self, name: str, random: bytes, suite: int, secrets: Secrets, what: str) -> None:
        self._name, self._random, self._secrets, self._what = name, random, secrets, what
        self._hash, self._key_length, self._aead = SUITES[suite]
        self._handshake = bytearray()
        self.kinds: list[int] = []
        self.certificates: tuple[bytes, ...] = ()
        self.data = bytearray()
        self._use(f"{name}_HANDSHAKE_TRAFFIC_SECRET")

    def read(self, stream: bytes) -> _Side:
        """Decrypt every complete record of the stream."""
        for kind, header, body in _records(stream):
            if kind != APPLICATION_DATA:
                continue
            nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
            plain = self._cipher.decrypt(nonce, body, header).rstrip(b"\0")
            self._sequence += 1
            self._on_record(plain[-1], plain[:-1])
        return self

    def _on_record(self, kind: int, content: bytes) -> None:
        if kind == APPLICATION_DATA:
            self.data += content
        elif kind == HANDSHAKE and FINISHED not in self.kinds:
            self._handshake += content
            self._on_handshake()
        elif kind == HANDSHAKE and content[0] == KEY_UPDATE:
            raise TlsError(f"{self._what}: a KeyUpdate was sent; record a shorter transfer")

    def _on_handshake(self) -> None:
        messages = [expand_certificate(*each) for each in _messages(bytes(self._handshake))]
        self.kinds = [kind for kind, _ in messages]
        for kind, body in messages:
            if kind == CERTIFICATE:
                self.certificates = tuple(_certificates(body))
        if FINISHED in self.kinds:
            self._use(f"{self._name}_TRAFFIC_SECRET_0")

    def _use(self, label: str) -> None:
        try:
            secret = self._secrets[label, self._random]
        except KeyError:
            raise TlsError(f"{self._what}: the key log has no {label} of this connection") from None
        self._cipher = self._aead(expand_label(self._hash, secret, b"key", self._key_length))
        self._iv = int.from_bytes(expand_label(self._hash, secret, b"iv", 12), "big")
        self._sequence = 0


def expand_label(
    algorithm: hashes.HashAlgorithm, secret: bytes, label: bytes, length: int
) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 7.1); one block is always enough here."""
    full = b"tls13 " + label
    block = hmac.HMAC(secret, algorithm)
    block.update(struct.pack("!HB", length, len(full)) + full + b"\0\x01")
    return block.finalize()[:length]


def key_updates(secret: bytes, suite: int, count: int) -> bytes:
    """KeyUpdates of a side that has sent nothing yet, each under the key of the one before.

    Every one of them asks the other side for a new key, too (RFC 8446 4.6.3 and 7.2).
    """
    algorithm, key_length, aead = SUITES[suite]
    plain = struct.pack("!BBHBB", KEY_UPDATE, 0, 1, 1, HANDSHAKE)
    header = struct.pack("!BHH", APPLICATION_DATA, 0x0303, len(plain) + 16)
    records = []
    for _ in range(count):
        cipher = aead(expand_label(algorithm, secret, b"key", key_length))
        nonce = expand_label(algorithm, secret, b"iv", 12)
        records.append(header + cipher.encrypt(nonce, plain, header))
        secret = expand_label(algorithm, secret, b"traffic upd", algorithm.digest_size)
    return b"".join(records)


def _records(stream: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    offset = 0
    while offset + 5 <= len(stream):
        end = offset + 5 + int.from_bytes(stream[offset + 3 : offset + 5], "big")
        if end > len(stream):
            return
        yield stream[offset], stream[offset : offset + 5], stream[offset + 5 : end]
        offset = end


def _messages(content: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(content):
        end = offset + 4 + int.from_bytes(content[offset + 1 : offset + 4], "big")
        if end > len(content):
            return
        yield content[offset], content[offset + 4 : end]
        offset = end


def _hello(stream: bytes, kind: int, what: str) -> bytes:
    for record, _, body in _records(stream):
        if record == HANDSHAKE and body[0] == kind:
            return next(_messages(body))[1]
        break
    raise TlsError(f"{what}: the first record is no TLS hello: {stream[:32]!r}")


def _parse_server_hello(hello: bytes) -> tuple[int, dict[int, bytes]]:
    after_session = 35 + hello[34]
    suite = int.from_bytes(hello[after_session : after_session + 2], "big")
    return suite, _extensions(hello[after_session + 3 :])


def _client_extensions(hello: bytes) -> dict[int, bytes]:
    offset = 35 + hello[34]
    offset += 2 + int.from_bytes(hello[offset : offset + 2], "big")
    return _extensions(hello[offset + 1 + hello[offset] :])


def _extensions(content: bytes) -> dict[int, bytes]:
    found, offset = {}, 2
    while offset + 4 <= len(content):
        kind, length = struct.unpack_from("!HH", content, offset)
        found[kind] = content[offset + 4 : offset + 4 + length]
        offset += 4 + length
    return found


def expand_certificate(kind: int, body: bytes) -> tuple[int, bytes]:
    """A handshake message, a compressed certificate (RFC 8879) as the one it stands for.

    OpenSSL 3.2 and later compress with zlib, the only algorithm read here, when both sides can.
    """
    if kind != COMPRESSED_CERTIFICATE:
        return kind, body
    if (algorithm := int.from_bytes(body[:2], "big")) != COMPRESSION_ZLIB:
        raise TlsError(f"certificate compressed with algorithm {algorithm}, which is not zlib")
    plain = zlib.decompress(body[8:])
    if len(plain) != int.from_bytes(body[2:5], "big"):
        raise TlsError("compressed certificate of another length than it says")
    return CERTIFICATE, plain


def _certificates(body: bytes) -> Iterator[bytes]:
    offset = 1 + body[0]
    end = offset + 3 + int.from_bytes(body[offset : offset + 3], "big")
    offset += 3
    while offset < end:
        length = int.from_bytes(body[offset : offset + 3], "big")
        yield body[offset + 3 : offset + 3 + length]
        offset += 3 + length
        offset += 2 + int.from_bytes(body[offset : offset + 2], "big")
