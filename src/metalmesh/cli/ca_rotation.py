"""``metalmesh ca rotate-root`` and ``metalmesh ca check-node``: a new root, stage by stage."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from metalmesh.constants import DEFAULT_TRUST_DOMAIN, PORT_ZTUNNEL_ADMIN, ROOT_CERT_PATH
from metalmesh.controlplane.ca_files import CaPaths, read_certificates
from metalmesh.controlplane.ca_rotation import STAGES, rotate_root
from metalmesh.errors import CertificateError
from metalmesh.pki.crl import parse_serial

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from datetime import datetime

_POLL_SECONDS: Final = 0.2
_SHOWN: Final = 3


def add_arguments(actions: Any) -> None:
    """Declare the options of both."""
    rotate = actions.add_parser("rotate-root", help="one stage of replacing the root")
    rotate.add_argument("--stage", choices=STAGES, required=True)
    rotate.add_argument("--dir", required=True, type=Path, help="directory of the CA")
    rotate.add_argument("--root-dir", type=Path, help="directory of the root's key")
    rotate.add_argument("--trust-domain", default=DEFAULT_TRUST_DOMAIN)
    check = actions.add_parser(
        "check-node", help="wait until the ztunnel of this machine follows a change of the CA"
    )
    check.add_argument("--root", action="append", required=True, help="serial number; repeatable")
    check.add_argument("--issuing", required=True, help="serial number")
    check.add_argument("--root-cert-path", type=Path, default=Path(ROOT_CERT_PATH))
    check.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS")
    check.add_argument("--admin-port", type=int, default=PORT_ZTUNNEL_ADMIN)
    for action in (rotate, check):
        action.add_argument("-o", "--output", choices=("text", "json"), default="text")


def rotate(args: argparse.Namespace, now: datetime) -> dict[str, Any]:
    """Do a stage; what to check every node for afterwards."""
    paths = CaPaths(args.dir, args.root_dir or args.dir)
    return describe(paths, rotate_root(paths, args.stage, args.trust_domain, now))


def describe(paths: CaPaths, written: Sequence[Path]) -> dict[str, Any]:
    """What was written, and the serial numbers of what the CA has now."""
    return {
        "changed": bool(written),
        "files": [str(path) for path in written],
        "roots": [f"{cert.serial_number:x}" for cert in read_certificates(paths.root_cert)],
        "issuing": f"{read_certificates(paths.issuing_cert)[0].serial_number:x}",
    }


def check_node(args: argparse.Namespace) -> dict[str, Any]:
    """Wait until this node has taken over what the CA has; an error says what it lacks."""
    roots, issuing = set(map(parse_serial, args.root)), parse_serial(args.issuing)
    deadline = time.monotonic() + args.timeout
    while True:
        lacking = _lacking_file(args.root_cert_path, roots)
        if not lacking:
            lacking = lacking_certificates(_config_dump(args.admin_port), roots, issuing)
        if not lacking:
            return {"changed": False, "files": []}
        if time.monotonic() >= deadline:
            more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
            raise CertificateError(f"{'; '.join(lacking[:_SHOWN])}{more}; do not go on")
        time.sleep(_POLL_SECONDS)


def _lacking_file(path: Path, roots: set[int]) -> list[str]:
    found = {cert.serial_number for cert in read_certificates(path)}
    return [] if found == roots else [f"{path} is not the CA's present bundle; apply the role ca"]


def lacking_certificates(dump: dict[str, Any] | None, roots: set[int], issuing: int) -> list[str]:
    """What is wrong with the certificates of a ztunnel's config dump, one text each."""
    if dump is None:
        return ["the ztunnel does not answer; start metalmesh-ztunnel"]
    lacking = []
    for entry in dump["certificates"]:
        chain = [int(item["serialNumber"]) for item in entry["certChain"]]
        if not chain:
            continue  # it has none, and will get one of the present CA
        if {int(item["serialNumber"]) for item in entry["rootCerts"]} != roots:
            lacking.append(f"{entry['identity']} trusts other roots than the CA")
        elif issuing not in chain[1:]:
            lacking.append(f"{entry['identity']} is signed by a former issuing certificate")
    return lacking


def _config_dump(port: int) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/config_dump", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (OSError, urllib.error.URLError, ValueError):
        return None
