"""The admin port's ``/config_dump`` (istio-facts 8.3), in the shapes of ``istioctl zc``."""

from __future__ import annotations

import base64
import dataclasses
import json
import platform
import ssl
import time
from typing import TYPE_CHECKING, Any

from cryptography import x509

from metalmesh import __version__
from metalmesh.model.workload import NetworkAddress
from metalmesh.pki.svid import split_pem
from metalmesh.ztunnel import messages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.service import Service
    from metalmesh.model.workload import GatewayAddress, Workload
    from metalmesh.routing.state import MeshState
    from metalmesh.ztunnel.certificates import CertificateKeeper
    from metalmesh.ztunnel.main import Ztunnel


async def config_dump(ztunnel: Ztunnel) -> str:
    """Everything main knows, as pretty JSON; secrets are left out."""
    state = ztunnel.mesh.state
    connections = [
        entry
        for _, reply in await ztunnel.pool.collect("connections")
        if isinstance(reply, messages.ConnectionsReply)
        for entry in reply.connections
    ]
    body = {
        "workloads": [_workload(w) for _, w in sorted(state.workloads.items())],
        "services": [
            _service(state, s) for s in sorted(state.services.values(), key=lambda s: s.hostname)
        ],
        "policies": [p.to_dict() for _, p in sorted(state.policies.items())],
        "stagedServices": {
            key: {uid: _endpoint(state, uid, ports) for uid, ports in found.items()}
            for key, found in sorted(state.staged_endpoints().items())
        },
        "staticConfig": {"workloads": [], "policies": [], "services": []},
        "version": _version(),
        "config": {
            _camel(name): _plain(value)
            for name, value in dataclasses.asdict(ztunnel.config).items()
        },
        "certificates": _certificates(ztunnel.certificates),
        "workloadState": _workload_state(ztunnel, connections),
    }
    return json.dumps(body, indent=2) + "\n"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _workload(workload: Workload) -> dict[str, Any]:
    locality = workload.locality
    return {
        "uid": workload.uid,
        "workloadIps": [str(address) for address in workload.addresses],
        **_gateway("waypoint", workload.waypoint),
        "protocol": workload.protocol.value,
        "name": workload.name,
        "namespace": workload.namespace,
        "trustDomain": workload.trust_domain,
        "serviceAccount": workload.service_account,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "clusterId": workload.cluster_id,
        "network": workload.network,
        "networkMode": "HostNetwork" if workload.host_network else "Standard",
        "node": workload.node,
        "hostname": workload.hostname,
        "nativeTunnel": workload.native_tunnel,
        "authorizationPolicies": list(workload.authorization_policies),
        "status": "Healthy" if workload.healthy else "Unhealthy",
        "locality": {key: value for key, value in dataclasses.asdict(locality).items() if value},
        "capacity": workload.capacity,
        "services": sorted(workload.services),
    }


def _service(state: MeshState, service: Service) -> dict[str, Any]:
    balancing = service.load_balancing
    return {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [str(vip) for vip in service.vips],
        "cidrVips": [{"network": vip.network, "cidr": str(vip.cidr)} for vip in service.cidr_vips],
        "ports": {str(port): target for port, target in sorted(service.ports.items())},
        "endpoints": {
            uid: _endpoint(state, uid, ports)
            for uid, ports in sorted(state.endpoints.get(service.key, {}).items())
        },
        "subjectAltNames": list(service.subject_alt_names),
        **_gateway("waypoint", service.waypoint),
        "loadBalancer": {
            "routingPreferences": [scope.value for scope in balancing.preferences],
            "mode": balancing.mode.value,
            "healthPolicy": "AllowAll" if balancing.allow_unhealthy else "OnlyHealthy",
        },
        "ipFamilies": service.ip_families or None,
        "canonical": service.canonical,
        "visibility": "Namespace" if service.private else "Public",
    }


def _endpoint(state: MeshState, uid: str, ports: Mapping[int, int]) -> dict[str, Any]:
    return {
        "workloadUid": uid,
        "port": {str(port): target for port, target in sorted(ports.items())},
        "status": "Healthy" if state.workloads[uid].healthy else "Unhealthy",
    }


def _gateway(key: str, gateway: GatewayAddress | None) -> dict[str, Any]:
    if gateway is None:
        return {}
    destination = gateway.destination
    where = (
        f"{destination.network}/{destination.address}"
        if isinstance(destination, NetworkAddress)
        else str(destination)
    )
    return {key: {"destination": where, "hboneMtlsPort": gateway.hbone_mtls_port}}


def _version() -> dict[str, str]:
    return {
        "version": __version__,
        "gitRevision": "",
        "rustVersion": f"Python {platform.python_version()}",
        "buildProfile": "release",
        "buildStatus": "Clean",
        "istioVersion": __version__,
        "cryptoProvider": ssl.OPENSSL_VERSION,
    }


def _certificates(keeper: CertificateKeeper) -> list[dict[str, Any]]:
    now = time.time()
    found = []
    for identity in sorted(keeper.schedule.identities()):
        svid = keeper.schedule.held(identity, now)
        found.append(
            {
                "identity": identity,
                "state": keeper.schedule.state(identity, now),
                "certChain": _chain(svid.chain_pem) if svid else [],
                "rootCerts": _chain(svid.roots_pem) if svid else [],
            }
        )
    return found


def _chain(pem: str) -> list[dict[str, str]]:
    found = []
    for text in split_pem(pem):
        certificate = x509.load_pem_x509_certificate(text.encode())
        found.append(
            {
                "pem": base64.b64encode(text.encode()).decode(),
                "serialNumber": str(certificate.serial_number),
                "validFrom": certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "expirationTime": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
    return found


def _workload_state(ztunnel: Ztunnel, connections: list[dict[str, str]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    served = {uid: local.info for uid, local in ztunnel.mesh.locals.items()}
    for uid, info in sorted((served | ztunnel.zds.pending).items()):
        found[uid] = {
            "state": "Up" if uid in served else "Pending",
            "connections": {"inbound": [], "outbound": []},
            "info": {
                "name": info.name,
                "namespace": info.namespace,
                "serviceAccount": info.service_account,
            },
        }
    for connection in connections:
        entry = found.get(connection["uid"])
        if entry is not None:
            entry["connections"][connection["direction"]].append(
                {
                    "src": connection["src"],
                    "originalDst": connection["original_dst"] or None,
                    "actualDst": connection["actual_dst"],
                    "protocol": connection["protocol"],
                }
            )
    return found


def _plain(value: object) -> object:
    """A setting as JSON has it."""
    if isinstance(value, frozenset):
        return sorted(entry.value for entry in value)
    return value
