"""The control plane's gRPC services as a peer sees them: written against the wire messages only."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from metalmesh.constants import PORT_XDS
from metalmesh.proto import ca_pb2, node_pb2
from tests.support.machines import Machine
from tests.support.pki import CertificateAuthority, Credentials

CREATE_CERTIFICATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
JOIN = "/metalmesh.node.v1.NodeService/Join"
RENEW = "/metalmesh.node.v1.NodeService/Renew"
TIMEOUT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class ControlPlaneClient:
    """Calls as some node; the node's files say whom to trust and where it is."""

    channel: grpc.Channel
    token: str
    cluster: str

    def _call(self, method: str, request: Any, answer: Any, *, token: str | None = None) -> Any:
        call = self.channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        bearer = self.token if token is None else token
        metadata = [("clusterid", self.cluster)]
        if bearer:
            metadata.append(("authorization", f"Bearer {bearer}"))
        return call(request, timeout=TIMEOUT_SECONDS, metadata=metadata)

    def join(self, join_token: str, node: str) -> Any:
        """Trade a join token for a node token."""
        request = node_pb2.JoinRequest(join_token=join_token, node_name=node)
        return self._call(JOIN, request, node_pb2.NodeCredential, token="")

    def renew(self, token: str | None = None) -> Any:
        """Trade a node token for a newer one."""
        return self._call(RENEW, node_pb2.RenewRequest(), node_pb2.NodeCredential, token=token)

    def certificate(self, identity: str, *, token: str | None = None) -> Credentials:
        """Ask the CA for a certificate of this identity."""
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        signed = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        request = ca_pb2.IstioCertificateRequest(csr=signed.decode(), validity_duration=3600)
        request.metadata["ImpersonatedIdentity"] = identity
        answer = self._call(
            CREATE_CERTIFICATE, request, ca_pb2.IstioCertificateResponse, token=token
        )
        *chain, root = answer.cert_chain
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return Credentials("".join(chain).encode(), pem, root.encode())


@contextlib.contextmanager
def client_of(node: Machine, control_plane: Machine) -> Iterator[ControlPlaneClient]:
    """A client with a node's token, root certificate and settings."""
    settings = node.config("node")
    roots = node.path(settings["root_cert_path"]).read_bytes()
    name = settings.get("server_name") or settings["xds_address"].rsplit(":", 1)[0]
    options = [("grpc.ssl_target_name_override", name)]
    target = f"{control_plane.address}:{PORT_XDS}"
    credentials = grpc.ssl_channel_credentials(roots)
    with grpc.secure_channel(target, credentials, options) as channel:
        token = node.path(settings["token_path"]).read_text().strip()
        yield ControlPlaneClient(channel, token, settings["cluster_id"])


def authority_of(control_plane: Machine) -> CertificateAuthority:
    """The lab's CA with its issuing key: signs what the control plane would refuse."""
    directory = control_plane.config("controlplane")["ca_dir"]
    root, chain, key = (
        control_plane.path(f"{directory}/{name}").read_bytes()
        for name in ("root-cert.pem", "issuing-cert.pem", "issuing-key.pem")
    )
    return CertificateAuthority.load(root=root, chain=chain, key=key)
