"""Who may have which identity: joining, node tokens, workload certificates (istio-facts 4).

Clients get an opaque error; the reason goes into the audit log, scope ``audit``.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from metalmesh.errors import (
    CertificateError,
    IdentityError,
    StoreError,
    TokenError,
)
from metalmesh.model.identity import SpiffeId, parse_spiffe_id
from metalmesh.pki.tokens import NodeToken, issue_node_token, verify_node_token
from metalmesh.proto import ca_pb2, node_pb2
from metalmesh.service.logs import Bare, Log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import NoReturn

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from metalmesh.controlplane.issued import IssuedCertificates
    from metalmesh.controlplane.issuer import Issuer
    from metalmesh.controlplane.join_tokens import JoinTokens
    from metalmesh.controlplane.metrics import ControlPlaneMetrics
    from metalmesh.controlplane.revocations import Revocations

    Identities = Mapping[str, frozenset[tuple[str, str]]]
    Context = grpc.aio.ServicerContext[Any, Any]

CA_SERVICE: Final = "istio.v1.auth.IstioCertificateService"
NODE_SERVICE: Final = "metalmesh.node.v1.NodeService"
METADATA_IDENTITY: Final = "ImpersonatedIdentity"
_BEARER: Final = "Bearer "
#: workloads one node may call unwell; more is not a machine
MAX_UNHEALTHY: Final = 10_000
_MAX_UID: Final = 512
_MAX_REASON: Final = 256

#: istiod's own texts (istio-facts 4): they say nothing about the reason
TEXT_UNAUTHENTICATED: Final = "request authenticate failure"
TEXT_IDENTITY: Final = "request impersonation authentication failure"
TEXT_REQUEST: Final = "certificate signing request refused"
TEXT_JOIN: Final = "join token refused"

audit = Log("audit")


class NodeAuthenticator:
    """Issues and verifies node tokens."""

    def __init__(
        self,
        key: EllipticCurvePrivateKey,
        ttl_seconds: int,
        revocations: Revocations,
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._key = key
        self._revocations = revocations
        self._public = key.public_key()
        self._ttl_seconds = ttl_seconds
        self._metrics = metrics

    def credential(self, node: str) -> node_pb2.NodeCredential:
        """A fresh token for a node."""
        now = int(time.time())
        token = issue_node_token(self._key, node, secrets.token_hex(8), now, self._ttl_seconds)
        return node_pb2.NodeCredential(node_token=token, expires_at=now + self._ttl_seconds)

    async def authenticate(self, context: Context) -> NodeToken:
        """The calling node; ends the call when its token is missing or not valid."""
        metadata = dict(context.invocation_metadata() or ())
        header = metadata.get("authorization", "")
        try:
            if not isinstance(header, str) or not header.startswith(_BEARER):
                raise TokenError("no bearer token in the metadata")
            token = verify_node_token(
                self._public, header.removeprefix(_BEARER).strip(), int(time.time())
            )
            self._revocations.check(token)
        except TokenError as error:
            self._metrics.authentication_failures.inc()
            audit.warning(
                "authentication refused", {"peer": Bare(context.peer()), "reason": str(error)}
            )
            await refuse(context, grpc.StatusCode.UNAUTHENTICATED, TEXT_UNAUTHENTICATED)
        return token

    def check_still_valid(self, token: NodeToken) -> None:
        """Raise :class:`TokenError` when a token has expired or was revoked since."""
        if time.time() >= token.expires_at:
            raise TokenError(f"node token of {token.node} expired")
        self._revocations.check(token)


async def refuse(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    """End a call."""
    await context.abort(code, text)
    raise AssertionError("abort returned")


class CertificateService:
    """``IstioCertificateService``: signs for identities that live on the calling node."""

    def __init__(
        self,
        issuer: Issuer,
        authenticator: NodeAuthenticator,
        trust_domain: str,
        identities: Callable[[], Identities],
        issued: IssuedCertificates,
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._issuer = issuer
        self._authenticator = authenticator
        self._trust_domain = trust_domain
        self._identities = identities
        self._issued = issued
        self._metrics = metrics

    async def create_certificate(
        self, request: ca_pb2.IstioCertificateRequest, context: Context
    ) -> ca_pb2.IstioCertificateResponse:
        """Sign one request."""
        node = (await self._authenticator.authenticate(context)).node
        wanted = self._requested(request)
        try:
            identity = self._allowed(wanted, node)
        except IdentityError as error:
            self._refused("refused_identity", node, wanted, str(error))
            await refuse(context, grpc.StatusCode.UNAUTHENTICATED, TEXT_IDENTITY)
        try:
            signed = self._issuer.sign(request.csr, identity, request.validity_duration)
        except CertificateError as error:
            self._refused("refused_request", node, wanted, str(error))
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, TEXT_REQUEST)
        self._issued.add(signed.serial, wanted, node, signed.not_after)
        self._metrics.certificates.inc(("issued",))
        fields = {"node": node, "identity": wanted, "serial": f"{signed.serial:x}"}
        audit.info("certificate issued", fields)
        return ca_pb2.IstioCertificateResponse(cert_chain=signed.chain)

    @staticmethod
    def _requested(request: ca_pb2.IstioCertificateRequest) -> str:
        value = request.metadata.fields.get(METADATA_IDENTITY)
        return value.string_value if value is not None else ""

    def _allowed(self, wanted: str, node: str) -> SpiffeId:
        """The requested identity, if a workload of the calling node has it."""
        if not wanted:
            raise IdentityError(
                f"no {METADATA_IDENTITY} in the request; a node has no identity of its own"
            )
        identity = parse_spiffe_id(wanted)
        if identity.trust_domain != self._trust_domain:
            raise IdentityError(
                f"trust domain {identity.trust_domain!r} is not ours, {self._trust_domain!r}"
            )
        pair = (identity.namespace, identity.service_account)
        if pair not in self._identities().get(node, frozenset()):
            raise IdentityError(
                f"no WorkloadEntry of service account {'/'.join(pair)} is placed on node {node!r}"
            )
        return identity

    def _refused(self, result: str, node: str, identity: str, reason: str) -> None:
        self._metrics.certificates.inc((result,))
        fields = {"node": node, "identity": identity[:512], "reason": reason}
        audit.warning("certificate refused", fields)


class NodeService:
    """``NodeService``: a join token becomes a node token, a node token a newer one; health.

    ``take_health`` gets what a node says of its workloads; ``settle`` waits for the consequences.
    """

    def __init__(
        self,
        tokens: JoinTokens,
        authenticator: NodeAuthenticator,
        metrics: ControlPlaneMetrics,
        take_health: Callable[[str, Mapping[str, str]], None],
        settle: Callable[[], Awaitable[bool]],
    ) -> None:
        self._tokens = tokens
        self._authenticator = authenticator
        self._metrics = metrics
        self._take_health = take_health
        self._settle = settle

    async def join(
        self, request: node_pb2.JoinRequest, context: Context
    ) -> node_pb2.NodeCredential:
        """Redeem a join token, once."""
        node = request.node_name[:253]
        fields = {"node": node, "peer": Bare(context.peer())}
        try:
            record = self._tokens.redeem(request.join_token, request.node_name, int(time.time()))
        except (TokenError, StoreError) as error:
            self._metrics.joins.inc(("refused",))
            audit.warning("join refused", {**fields, "reason": str(error)})
            await refuse(context, grpc.StatusCode.UNAUTHENTICATED, TEXT_JOIN)
        self._metrics.joins.inc(("joined",))
        audit.info("node joined", {**fields, "token": record.id})
        return self._authenticator.credential(record.node)

    async def renew(
        self, _request: node_pb2.RenewRequest, context: Context
    ) -> node_pb2.NodeCredential:
        """Exchange a valid node token for a fresh one."""
        node = (await self._authenticator.authenticate(context)).node
        self._metrics.renewals.inc()
        audit.info("node token renewed", {"node": node})
        return self._authenticator.credential(node)

    async def report_health(
        self, request: node_pb2.HealthReport, context: Context
    ) -> node_pb2.HealthReply:
        """Take a node's word for its own workloads; another node's are none of its business."""
        node = (await self._authenticator.authenticate(context)).node
        if len(request.unhealthy) > MAX_UNHEALTHY:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "too many workloads")
        said = {item.uid[:_MAX_UID]: item.reason[:_MAX_REASON] for item in request.unhealthy}
        self._metrics.health_reports.inc()
        self._take_health(node, said)
        return node_pb2.HealthReply(settled=bool(request.wait) and await self._settle())


def handlers(
    certificates: CertificateService, nodes: NodeService
) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """gRPC handlers of both services."""
    create = grpc.unary_unary_rpc_method_handler(
        certificates.create_certificate,
        request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
        response_serializer=ca_pb2.IstioCertificateResponse.SerializeToString,
    )
    join = grpc.unary_unary_rpc_method_handler(
        nodes.join,
        request_deserializer=node_pb2.JoinRequest.FromString,
        response_serializer=node_pb2.NodeCredential.SerializeToString,
    )
    renew = grpc.unary_unary_rpc_method_handler(
        nodes.renew,
        request_deserializer=node_pb2.RenewRequest.FromString,
        response_serializer=node_pb2.NodeCredential.SerializeToString,
    )
    health = grpc.unary_unary_rpc_method_handler(
        nodes.report_health,
        request_deserializer=node_pb2.HealthReport.FromString,
        response_serializer=node_pb2.HealthReply.SerializeToString,
    )
    methods = {"Join": join, "Renew": renew, "ReportHealth": health}
    return [
        grpc.method_handlers_generic_handler(CA_SERVICE, {"CreateCertificate": create}),
        grpc.method_handlers_generic_handler(NODE_SERVICE, methods),
    ]
