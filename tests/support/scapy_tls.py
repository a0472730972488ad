"""The same recordings read by scapy: a second opinion on every decryption.

scapy keeps its settings in a global ``conf``; this module is the only one that touches it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metalmesh.constants import PORT_HBONE
from tests.support.packets import Endpoint
from tests.support.tls13 import (
    COMPRESSED_CERTIFICATE,
    TlsConnection,
    TlsError,
    expand_certificate,
)


@dataclasses.dataclass
class Sent:
    """What one side of a connection sent, as scapy decrypted it."""

    certificates: list[bytes] = dataclasses.field(default_factory=list)
    certificate_requested: bool = False
    data: bytearray = dataclasses.field(default_factory=bytearray)


Flows = dict[tuple[Endpoint, Endpoint], Sent]


def decrypt(path: Path, keylog: str) -> Flows:
    """Let scapy decrypt the recording; the result is keyed by sender and receiver."""
    from scapy.all import TCP, TCPSession, bind_layers, conf, load_layer, sniff

    load_layer("tls")
    from scapy.layers.tls.record import TLS
    from scapy.layers.tls.session import _tls_sessions

    for side in ("sport", "dport"):
        bind_layers(TCP, TLS, **{side: PORT_HBONE})
    flows: Flows = {}
    with tempfile.NamedTemporaryFile("w", prefix="mm-keylog-") as keys:
        keys.write(keylog)
        keys.flush()
        conf.tls_session_enable = True
        conf.tls_sessions = _tls_sessions()
        conf.tls_nss_filename = keys.name
        for packet in sniff(offline=str(path), session=TCPSession, quiet=True):
            if TCP in packet:
                ip, tcp = packet[1], packet[TCP]
                key = (Endpoint(ip.src, tcp.sport), Endpoint(ip.dst, tcp.dport))
                _collect(tcp.payload, flows.setdefault(key, Sent()))
    return flows


def _collect(layer: Any, sent: Sent) -> None:
    from scapy.layers.tls.handshake import TLS13Certificate, TLS13CertificateRequest
    from scapy.layers.tls.record import TLSApplicationData

    for message in map(_expand, _messages(layer)):
        if isinstance(message, TLS13Certificate):
            sent.certificates = [bytes(entry.cert[1].der) for entry in message.certs]
        elif isinstance(message, TLS13CertificateRequest):
            sent.certificate_requested = True
        elif isinstance(message, TLSApplicationData):
            sent.data += message.data


def _expand(message: Any) -> Any:
    """scapy does not know compressed certificates (RFC 8879): it gets the one they stand for."""
    from scapy.layers.tls.handshake import TLS13Certificate
    from scapy.packet import Raw

    content = bytes(message)
    if not isinstance(message, Raw) or content[0] != COMPRESSED_CERTIFICATE:
        return message
    kind, plain = expand_certificate(content[0], content[4:])
    return TLS13Certificate(bytes([kind]) + len(plain).to_bytes(3, "big") + plain)


def _messages(layer: Any) -> Iterator[Any]:
    from scapy.layers.tls.record import TLS
    from scapy.layers.tls.record_tls13 import TLS13

    while layer:
        if isinstance(layer, TLS13) and layer.inner:
            yield from layer.inner.msg or []
        elif isinstance(layer, TLS | TLS13):
            yield from getattr(layer, "msg", None) or []
        layer = layer.payload


def cross_check(ours: TlsConnection, flows: Flows) -> None:
    """Fail unless scapy read the same certificates and the same data."""
    client = flows.get((ours.client, ours.server), Sent())
    server = flows.get((ours.server, ours.client), Sent())
    pairs = {
        "client certificates": (ours.client_certificates, tuple(client.certificates)),
        "server certificates": (ours.server_certificates, tuple(server.certificates)),
        "certificate request": (ours.certificate_requested, server.certificate_requested),
        "client data": (ours.client_data, bytes(client.data)),
        "server data": (ours.server_data, bytes(server.data)),
    }
    for name, (mine, scapys) in pairs.items():
        if mine != scapys:
            raise TlsError(
                f"{ours.client} -> {ours.server}: scapy and our own decryptor disagree on {name}:"
                f" {scapys!r} and {mine!r}"
            )
