"""gRPC channels to the control plane: TLS with the mesh's root, a bearer token per call.

Root certificate and token are files that other programs replace while we run: they are read anew
for each channel and each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from metalmesh.errors import ConfigError

#: messages of a big mesh's first answer (istio-facts 3.1)
MAX_MESSAGE_BYTES: Final = 200 * 1024 * 1024
CONNECT_TIMEOUT_MILLISECONDS: Final = 5000
_OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's name for the time a connection and its TLS handshake may take
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MILLISECONDS),
    # the shell above does its own backoff, with a new channel each time
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlPlane:
    """Where a control plane is and how we prove who we are."""

    #: ``host:port``
    address: str
    root_cert_path: str
    token_path: str = ""
    cluster_id: str = ""
    #: name in its certificate; "" means the host of ``address``
    server_name: str = ""

    def open_channel(self) -> grpc.aio.Channel:
        """A new channel; raises :class:`ConfigError` when the root certificate is unreadable."""
        roots = read_credential(self.root_cert_path, "root certificate", "root_cert_path")
        credentials = grpc.ssl_channel_credentials(root_certificates=roots)
        options = list(_OPTIONS)
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        return grpc.aio.secure_channel(self.address, credentials, options=options)

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of one call; reads the token."""
        metadata = []
        if self.token_path:
            token = read_credential(self.token_path, "node token", "token_path").decode().strip()
            metadata.append(("authorization", f"Bearer {token}"))
        if self.cluster_id:
            metadata.append(("clusterid", self.cluster_id))
        return tuple(metadata)


def read_credential(path: str, what: str, option: str) -> bytes:
    """Read a small file; the error names the option that points at it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{what} {path} ({option}) cannot be read: {error.strerror}; has the node joined?"
        ) from error
