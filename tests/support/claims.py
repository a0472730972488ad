"""What the mesh promises about one exchange, each claim answered from a recording of the link.

The same claims are asserted by the tests, refuted by their negative twins, and printed for a
newcomer by ``playbooks/verify.yml``.
"""

from __future__ import annotations

import dataclasses

from metalmesh.constants import PORT_HBONE
from tests.support import hbone, tls13
from tests.support.capture import Capture
from tests.support.packets import Endpoint


@dataclasses.dataclass(frozen=True)
class Claim:
    """One promise and what was seen of it."""

    text: str
    holds: bool
    seen: str

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}  {self.text}: {self.seen}"


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What an application did: it sent a marker, unaware of any mesh."""

    client_address: str
    client_identity: str
    server_address: str
    server_identity: str
    port: int
    """Where the destination's application listens."""
    marker: bytes
    """Random text of this exchange, sent and echoed."""


def claims(recording: Capture, keylog: str, exchange: Exchange) -> list[Claim]:
    """Everything a recording of one exchange has to show."""
    found = [_only_hbone(recording, exchange), _never_in_clear(recording, exchange)]
    connections = [
        connection
        for connection in _decrypted(recording, keylog)
        if (connection.client.address, connection.server.address)
        == (exchange.client_address, exchange.server_address)
    ]
    carrier = next((c for c in connections if _carries(c, exchange)), None)
    found.append(
        Claim(
            "the marker was inside an HBONE connection between these addresses",
            carrier is not None,
            f"{len(connections)} HBONE connection(s) from its SYN on decrypted",
        )
    )
    if carrier is not None:
        found += _tls(carrier, exchange) + _tunnel(carrier, exchange)
    return found


def assert_claims(recording: Capture, keylog: str, exchange: Exchange) -> None:
    """Fail with the whole list unless every claim holds."""
    found = claims(recording, keylog, exchange)
    assert all(claim.holds for claim in found), "\n".join(map(str, found))


def _only_hbone(recording: Capture, exchange: Exchange) -> Claim:
    seen = recording.ports_between({exchange.client_address}, {exchange.server_address})
    return Claim(
        f"between {exchange.client_address} and {exchange.server_address} only tcp/{PORT_HBONE}",
        seen == {f"tcp/{PORT_HBONE}"},
        ", ".join(sorted(seen)) or "no packet",
    )


def _never_in_clear(recording: Capture, exchange: Exchange) -> Claim:
    in_clear = recording.plaintext_contains(exchange.marker)
    return Claim(
        "the marker the application sent never appears in clear",
        not in_clear,
        f"{exchange.marker.decode()} {'found' if in_clear else 'not found'}"
        f" in {len(recording.packets)} packets",
    )


def _decrypted(recording: Capture, keylog: str) -> list[tls13.TlsConnection]:
    """Connections seen from their SYN on; a tunnel that was pooled before shows none."""
    return recording.tls_handshakes(keylog)


def _carries(connection: tls13.TlsConnection, exchange: Exchange) -> bool:
    return any(
        exchange.marker in data for data in hbone.stream_data(connection.client_data).values()
    )


def _tls(connection: tls13.TlsConnection, exchange: Exchange) -> list[Claim]:
    version = connection.version
    proof = "signed with it" if connection.client_proved else "did not sign with it"
    return [
        Claim("TLS 1.3", version == tls13.TLS_1_3, f"version {version:#06x}"),
        Claim(
            "the server asked for a client certificate and got one",
            connection.certificate_requested
            and bool(connection.client_certificates)
            and connection.client_proved,
            f"{len(connection.client_certificates)} certificate(s), client {proof}",
        ),
        Claim(
            f"the client is {exchange.client_identity}",
            connection.client_uris == (exchange.client_identity,),
            ", ".join(connection.client_uris) or "no identity",
        ),
        Claim(
            f"the server is {exchange.server_identity}",
            connection.server_uris == (exchange.server_identity,),
            ", ".join(connection.server_uris) or "no identity",
        ),
    ]


def _tunnel(connection: tls13.TlsConnection, exchange: Exchange) -> list[Claim]:
    authority = str(Endpoint(exchange.server_address, exchange.port))
    requests = hbone.requests(connection.client_data)
    answers = [fields for _, fields in hbone.headers(connection.server_data)]
    wanted = {":method": "CONNECT", ":authority": authority}
    return [
        Claim(
            f"decrypted, it is HTTP/2 CONNECT to {authority}",
            any(wanted.items() <= request.items() for request in requests)
            and all(":path" not in request for request in requests),
            "; ".join(f"{r.get(':method')} {r.get(':authority')}" for r in requests),
        ),
        Claim(
            "the server answered 200",
            any(answer.get(":status") == "200" for answer in answers),
            ", ".join(answer.get(":status", "?") for answer in answers) or "no answer",
        ),
    ]
