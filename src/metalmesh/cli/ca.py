"""``metalmesh ca``: make, renew and show the mesh's root and issuing certificates."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalmesh.constants import DEFAULT_TRUST_DOMAIN
from metalmesh.controlplane.ca_files import (
    CaPaths,
    init_ca,
    plan_init,
    read_certificates,
    renew_issuing,
)

if TYPE_CHECKING:
    import argparse

    from cryptography import x509


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    init = actions.add_parser("init", help="make root and issuing certificate where missing")
    renew = actions.add_parser("renew", help="replace the issuing certificate, same root")
    show = actions.add_parser("show", help="print what the certificates are")
    for action in (init, renew, show):
        action.add_argument("--dir", required=True, type=Path, help="directory of the CA")
        action.add_argument("-o", "--output", choices=("text", "json"), default="text")
    for action in (init, renew):
        action.add_argument("--trust-domain", default=DEFAULT_TRUST_DOMAIN)
        action.add_argument(
            "--root-dir", type=Path, help="directory of the root's key (default: --dir)"
        )
    init.add_argument("--check", action="store_true", help="only say what would be written")


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    now = datetime.now(UTC)
    if args.action == "show":
        _print(args, {"certificates": _describe(CaPaths(args.dir, args.dir))})
        return 0
    paths = CaPaths(args.dir, args.root_dir or args.dir)
    if args.action == "renew":
        renew_issuing(paths, args.trust_domain, now)
        written = [paths.issuing_key, paths.issuing_cert]
    else:
        written = plan_init(paths) if args.check else init_ca(paths, args.trust_domain, now)
    _print(args, {"changed": bool(written), "files": [str(path) for path in written]})
    return 0


def _describe(paths: CaPaths) -> list[dict[str, str]]:
    certificates = [*read_certificates(paths.root_cert), *read_certificates(paths.issuing_cert)]
    return [_summary(cert) for cert in certificates]


def _summary(cert: x509.Certificate) -> dict[str, str]:
    return {
        "subject": cert.subject.rfc4514_string(),
        "issuer": cert.issuer.rfc4514_string(),
        "serial": f"{cert.serial_number:x}",
        "not_before": cert.not_valid_before_utc.isoformat(),
        "not_after": cert.not_valid_after_utc.isoformat(),
    }


def _print(args: argparse.Namespace, result: dict[str, Any]) -> None:
    if args.output == "json":
        sys.stdout.write(json.dumps(result) + "\n")
        return
    for cert in result.get("certificates", []):
        sys.stdout.write(" ".join(f"{key}={value}" for key, value in cert.items()) + "\n")
    for path in result.get("files", []):
        sys.stdout.write(f"{path}\n")
