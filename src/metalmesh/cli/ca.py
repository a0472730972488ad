"""``metalmesh ca``: make, renew, rotate, revoke and show the mesh's certificates."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalmesh.cli import ca_rotation
from metalmesh.constants import DEFAULT_TRUST_DOMAIN, STATE_DIR
from metalmesh.controlplane.ca_files import (
    CaPaths,
    import_ca,
    init_ca,
    plan_init,
    read_certificates,
    renew_issuing,
    write_imported,
)
from metalmesh.controlplane.crl_file import describe_crls, write_crl
from metalmesh.controlplane.issued import IssuedCertificates
from metalmesh.errors import CertificateError
from metalmesh.pki.crl import parse_serial

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
    given = actions.add_parser("import", help="take an intermediate of another CA")
    given.add_argument("--dir", required=True, type=Path, help="directory of the CA")
    given.add_argument(
        "--from", dest="source", required=True, type=Path,
        help="directory of ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem (Istio's names)",
    )  # fmt: skip
    given.add_argument("-o", "--output", choices=("text", "json"), default="text")
    given.add_argument("--check", action="store_true", help="only say what would be written")
    init.add_argument("--check", action="store_true", help="only say what would be written")
    _add_crl_arguments(actions)
    ca_rotation.add_arguments(actions)


def _add_crl_arguments(actions: Any) -> None:
    revoke = actions.add_parser("revoke", help="put certificates on the revocation list")
    revoke.add_argument("--serial", action="append", default=[], help="hexadecimal; repeatable")
    revoke.add_argument(
        "--identity", action="append", default=[], metavar="URI",
        help="every valid certificate issued to it; repeatable",
    )  # fmt: skip
    revoke.add_argument(
        "--state-dir", type=Path, default=Path(STATE_DIR) / "controlplane",
        help="where the control plane records what it issues (default: %(default)s)",
    )  # fmt: skip
    revoke.add_argument(
        "--issuer", choices=("issuing", "root"), default="issuing",
        help="who signed them: root for issuing certificates; needs the root's key",
    )  # fmt: skip
    revoke.add_argument("--root-dir", type=Path, help="directory of the root's key")
    crl = actions.add_parser("crl", help="sign the revocation list anew and print what is on it")
    for action in (revoke, crl):
        action.add_argument("--dir", required=True, type=Path, help="directory of the CA")
        action.add_argument("-o", "--output", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    now = datetime.now(UTC)
    if args.action == "show":
        _print(args, {"certificates": _describe(CaPaths(args.dir, args.dir))})
        return 0
    if args.action in ("revoke", "crl"):
        return _revoke(args, now)
    if args.action == "import":
        files = import_ca(CaPaths(args.dir, args.dir), args.source, now)
        if not args.check:
            write_imported(files)
        _print(args, {"changed": bool(files), "files": [str(path) for path in files]})
        return 0
    if args.action == "rotate-root":
        _print(args, ca_rotation.rotate(args, now))
        return 0
    if args.action == "check-node":
        _print(args, ca_rotation.check_node(args))
        return 0
    paths = CaPaths(args.dir, args.root_dir or args.dir)
    if args.action == "renew":
        renew_issuing(paths, args.trust_domain, now)
        _print(args, ca_rotation.describe(paths, [paths.issuing_key, paths.issuing_cert]))
    else:
        written = plan_init(paths) if args.check else init_ca(paths, args.trust_domain, now)
        _print(args, {"changed": bool(written), "files": [str(path) for path in written]})
    return 0


def _revoke(args: argparse.Namespace, now: datetime) -> int:
    paths = CaPaths(args.dir, getattr(args, "root_dir", None) or args.dir)
    serials = {parse_serial(text) for text in getattr(args, "serial", ())}
    issued = IssuedCertificates(getattr(args, "state_dir", args.dir))
    for identity in getattr(args, "identity", ()):
        found = issued.of_identity(identity, int(now.timestamp()))
        if not found:
            raise CertificateError(
                f"no valid certificate of {identity} is recorded in {args.state_dir}; name its "
                "serial numbers with --serial"
            )
        serials.update(found)
    if args.action == "revoke" and not serials:
        raise CertificateError("nothing to revoke; give --serial or --identity")
    by_root = getattr(args, "issuer", "issuing") == "root"
    changed, crls = write_crl(paths, serials, now, by_root=by_root)
    _print(args, {"changed": changed, "files": [str(paths.crl)], "revoked": describe_crls(crls)})
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
    for entry in result.get("revoked", []):
        sys.stdout.write(" ".join(f"{key}={value}" for key, value in entry.items()) + "\n")
    for path in result.get("files", []):
        sys.stdout.write(f"{path}\n")
