"""Asks the CA for certificates (istio-facts 4). One channel, renewed when the root changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from metalmesh.errors import CertificateError, ConfigError
from metalmesh.proto import ca_pb2 as pb
from metalmesh.service.channel import read_credential

if TYPE_CHECKING:
    from metalmesh.service.channel import ControlPlane

METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
#: a CA that does not answer in this time counts as unreachable
TIMEOUT_SECONDS: Final = 10.0


class CaClient:
    """Calls ``CreateCertificate`` on behalf of the node's workloads."""

    def __init__(self, ca: ControlPlane) -> None:
        self._ca = ca
        self._channel: grpc.aio.Channel | None = None
        self._roots = b""

    async def create_certificate(self, identity: str, csr_pem: str, ttl_seconds: int) -> list[str]:
        """The chain for ``identity``: leaf, intermediates, roots; raises CertificateError."""
        request = pb.IstioCertificateRequest(csr=csr_pem, validity_duration=ttl_seconds)
        request.metadata.update({"ImpersonatedIdentity": identity})
        try:
            channel = await self._current_channel()
            call = channel.unary_unary(
                METHOD,
                request_serializer=pb.IstioCertificateRequest.SerializeToString,
                response_deserializer=pb.IstioCertificateResponse.FromString,
            )
            metadata = self._ca.call_metadata()
            response = await call(request, metadata=metadata, timeout=TIMEOUT_SECONDS)
        except ConfigError as error:
            raise CertificateError(f"certificate for {identity}: {error}") from error
        except grpc.aio.AioRpcError as error:
            raise CertificateError(
                f"certificate for {identity}: CA {self._ca.address} answered "
                f"{error.code().name}: {error.details()}"
            ) from error
        return list(response.cert_chain)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def _current_channel(self) -> grpc.aio.Channel:
        roots = read_credential(self._ca.root_cert_path, "root certificate", "root_cert_path")
        if self._channel is None or roots != self._roots:
            await self.close()
            self._channel = self._ca.open_channel()
            self._roots = roots
        return self._channel
