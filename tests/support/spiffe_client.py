"""Run as a program: the PyPI ``spiffe`` client in its own process and network namespace.

``python -m tests.support.spiffe_client SOCKET fetch|watch|jwt``: one JSON object a line.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import WorkloadApiClient

SECONDS = 10


def _told(context: Any) -> dict[str, Any]:
    """What an X.509 context says; the key is checked, not printed."""
    svid = context.default_svid
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fits = svid.private_key.public_key().public_bytes(*spki) == svid.leaf.public_key().public_bytes(
        *spki
    )
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    return {
        "identity": str(svid.spiffe_id),
        "serial": svid.leaf.serial_number,
        "chain": len(svid.cert_chain),
        "key_fits": fits,
        "roots": sorted(root.serial_number for root in bundle.x509_authorities),
    }


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _fetch(client: WorkloadApiClient) -> None:
    told = _told(client.fetch_x509_context(timeout=SECONDS))
    bundles = client.fetch_x509_bundles(timeout=SECONDS)
    told["domains"] = sorted(str(bundle.trust_domain) for bundle in bundles.bundles)
    _say(told)


def _watch(client: WorkloadApiClient) -> None:
    client.stream_x509_contexts(
        lambda context: _say(_told(context)), lambda error: _say({"error": str(error)})
    )
    threading.Event().wait()


def main() -> None:
    """Do what is asked; an error is a line, too."""
    path, action = sys.argv[1:]
    client = WorkloadApiClient(socket_path=f"unix://{path}", default_timeout=SECONDS)
    actions = {
        "fetch": _fetch,
        "watch": _watch,
        "jwt": lambda found: found.fetch_jwt_svid(audience={"x"}, timeout=SECONDS),
    }
    try:
        actions[action](client)
    except Exception as error:
        _say({"error": str(error)})


if __name__ == "__main__":
    main()
