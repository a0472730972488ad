"""A control plane under a test's thumb: delta xDS and CA on one port, resources set by hand.

It serves what it is told, counts what it is asked and can be stopped and started again. The real
control plane has its own tests; this one can misbehave.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import ipaddress
import queue
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from metalmesh.constants import (
    TYPE_ADDRESS,
    TYPE_AUTHORITY,
    TYPE_AUTHORIZATION,
    TYPE_NETWORK_POLICY,
)
from metalmesh.model.authorization import Authorization
from metalmesh.model.network_policy import CompiledNetworkPolicy
from metalmesh.model.service import Service
from metalmesh.model.workload import Workload
from metalmesh.pki import crl
from metalmesh.proto import ca_pb2, discovery_pb2
from metalmesh.xds.authorization import encode_authorization
from metalmesh.xds.node import encode_network_policy
from metalmesh.xds.wds import address_name, encode_address
from tests.support.netns import Netns
from tests.support.pki import Credentials

HOUR = datetime.timedelta(hours=1)
XDS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CA = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
TYPES = (TYPE_ADDRESS, TYPE_AUTHORIZATION, TYPE_NETWORK_POLICY, TYPE_AUTHORITY)


@dataclasses.dataclass
class _Stream:
    """One client: what it is to be sent, and what it has."""

    answers: queue.Queue[discovery_pb2.DeltaDiscoveryResponse | None]
    held: dict[str, dict[str, str]]


class ScriptedPlane:
    """Start with ``start``; everything else may happen before or after."""

    def __init__(self, where: Netns, directory: Path, address: str = "127.0.0.1:15012") -> None:
        self._where = where
        self._address = address
        self._resources: dict[str, dict[str, bytes]] = {url: {} for url in TYPES}
        self._streams: list[_Stream] = []
        self._server: grpc.Server | None = None
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "scripted root")])
        self._root = self._certificate(self._key, self._name, ca=True)
        #: life of the certificates it signs.
        self.ttl = datetime.timedelta(hours=24)
        #: when set, the CA refuses with this text.
        self.ca_refusal = ""
        #: identities asked for, in order.
        self.signed: list[str] = []
        #: metadata of those requests.
        self.ca_metadata: list[dict[str, str]] = []
        #: every request of every client, in order.
        self.requests: list[discovery_pb2.DeltaDiscoveryRequest] = []
        #: metadata of every stream.
        self.metadata: list[dict[str, str]] = []
        self.root_path = directory / "root-cert.pem"
        self.root_path.write_bytes(self._root.public_bytes(serialization.Encoding.PEM))

    # --- life ------------------------------------------------------------------------------
    def start(self) -> None:
        """Listen, in the node's namespace."""
        key = ec.generate_private_key(ec.SECP256R1())
        host = self._address.rpartition(":")[0]
        leaf = self._certificate(key, x509.Name([]), host=host)
        pem = leaf.public_bytes(serialization.Encoding.PEM)
        credentials = grpc.ssl_server_credentials([(_key_pem(key), pem)])
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
        server.add_generic_rpc_handlers((self._handlers(),))
        self._where.do(lambda: server.add_secure_port(self._address, credentials))
        server.start()
        self._server = server

    def stop(self) -> None:
        """Stop at once; streams break."""
        assert self._server is not None
        for stream in self._streams:
            stream.answers.put(None)
        self._server.stop(None).wait()
        self._server = None

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    def _handlers(self) -> grpc.GenericRpcHandler:
        xds = grpc.stream_stream_rpc_method_handler(
            self._converse,
            discovery_pb2.DeltaDiscoveryRequest.FromString,
            discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
        )
        ca = grpc.unary_unary_rpc_method_handler(
            self._sign,
            ca_pb2.IstioCertificateRequest.FromString,
            ca_pb2.IstioCertificateResponse.SerializeToString,
        )
        methods = {XDS: xds, CA: ca}

        class Handlers(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
                return methods.get(details.method)

        return Handlers()

    # --- resources -------------------------------------------------------------------------
    def set(self, *items: Workload | Service | Authorization | CompiledNetworkPolicy) -> None:
        """Add or replace resources, and tell the clients."""
        for item in items:
            if isinstance(item, Authorization):
                self.set_bytes(TYPE_AUTHORIZATION, item.key, encode_authorization(item))
            elif isinstance(item, CompiledNetworkPolicy):
                self.set_bytes(TYPE_NETWORK_POLICY, item.key, encode_network_policy(item))
            else:
                self.set_bytes(TYPE_ADDRESS, address_name(item), encode_address(item))

    def set_bytes(self, type_url: str, name: str, data: bytes) -> None:
        """Add or replace a resource, good or not."""
        self._resources[type_url][name] = data
        self._push(type_url)

    def remove(self, type_url: str, name: str) -> None:
        """Remove a resource."""
        del self._resources[type_url][name]
        self._push(type_url)

    def _push(self, type_url: str) -> None:
        for stream in self._streams:
            if type_url in stream.held:
                self._send(stream, type_url, always=False)

    def _send(self, stream: _Stream, type_url: str, *, always: bool) -> None:
        held, wanted = stream.held[type_url], self._resources[type_url]
        answer = discovery_pb2.DeltaDiscoveryResponse(
            type_url=type_url, nonce=str(len(self.requests)), removed_resources=held.keys() - wanted
        )
        for name, data in wanted.items():
            version = hashlib.sha256(data).hexdigest()
            if held.get(name) != version:
                resource = answer.resources.add(name=name, version=version)
                resource.resource.value = data
            held[name] = version
        for name in answer.removed_resources:
            del held[name]
        if always or answer.resources or answer.removed_resources:
            stream.answers.put(answer)

    def _converse(
        self, requests: Iterator[discovery_pb2.DeltaDiscoveryRequest], context: grpc.ServicerContext
    ) -> Iterator[discovery_pb2.DeltaDiscoveryResponse]:
        stream = _Stream(queue.Queue(), {})
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        self._streams.append(stream)
        reader = futures.ThreadPoolExecutor(1)
        reader.submit(self._read, stream, requests)
        try:
            while (answer := stream.answers.get()) is not None:
                yield answer
        finally:
            self._streams.remove(stream)
            reader.shutdown(wait=False)

    def _read(
        self, stream: _Stream, requests: Iterator[discovery_pb2.DeltaDiscoveryRequest]
    ) -> None:
        try:
            for request in requests:
                self.requests.append(request)
                if request.type_url not in stream.held:
                    stream.held[request.type_url] = dict(request.initial_resource_versions)
                    self._send(stream, request.type_url, always=True)
        except grpc.RpcError:
            pass  # the client has gone
        finally:
            stream.answers.put(None)

    # --- certificates ------------------------------------------------------------------------
    def _sign(
        self, request: ca_pb2.IstioCertificateRequest, context: grpc.ServicerContext
    ) -> ca_pb2.IstioCertificateResponse:
        identity = request.metadata["ImpersonatedIdentity"]
        self.signed.append(identity)
        self.ca_metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        if self.ca_refusal:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, self.ca_refusal)
        csr = x509.load_pem_x509_csr(request.csr.encode())
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        leaf = self._certificate(key, x509.Name([]), uri=identity)
        pem = serialization.Encoding.PEM
        chain = [leaf.public_bytes(pem).decode(), self._root.public_bytes(pem).decode()]
        return ca_pb2.IstioCertificateResponse(cert_chain=chain)

    def leaf(self, uri: str) -> Credentials:
        """A certificate of the same root for a peer that is no ztunnel of ours."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._certificate(key, x509.Name([]), uri=uri)
        pem = serialization.Encoding.PEM
        return Credentials(leaf.public_bytes(pem), _key_pem(key), self._root.public_bytes(pem))

    def crl(self, *serials: int) -> bytes:
        """A revocation list of the root, PEM."""
        now = datetime.datetime.now(datetime.UTC)
        return crl.crls_to_pem(crl.revoke([], self._root, self._key, serials, now))

    def _certificate(
        self,
        key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey,
        subject: x509.Name,
        *,
        ca: bool = False,
        host: str = "",
        uri: str = "",
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
        life = self.ttl if uri else HOUR
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now if uri else now - HOUR)
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_key_usage(ca=ca), critical=True)
        )
        names: list[x509.GeneralName] = []
        if host:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        if uri:
            names.append(x509.UniformResourceIdentifier(uri))
        if names:
            usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            builder = builder.add_extension(
                x509.SubjectAlternativeName(names), critical=True
            ).add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    """What the SPIFFE client insists on."""
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
