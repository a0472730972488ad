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
from metalmesh.pki.svid import split_pem
from metalmesh.xds.local import service_to_dict, workload_to_dict
from metalmesh.ztunnel import messages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metalmesh.model.service import Service
    from metalmesh.model.workload import Workload
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
        "staticConfig": ztunnel.mesh.local.to_dict(),
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
    """As in the local file, but for the services, of which there are only the names."""
    return {**workload_to_dict(workload), "services": sorted(workload.services)}


def _service(state: MeshState, service: Service) -> dict[str, Any]:
    return {
        **service_to_dict(service),
        "endpoints": {
            uid: _endpoint(state, uid, ports)
            for uid, ports in sorted(state.endpoints.get(service.key, {}).items())
        },
    }


def _endpoint(state: MeshState, uid: str, ports: Mapping[int, int]) -> dict[str, Any]:
    return {
        "workloadUid": uid,
        "port": {str(port): target for port, target in sorted(ports.items())},
        "status": "Healthy" if state.workloads[uid].healthy else "Unhealthy",
    }


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
