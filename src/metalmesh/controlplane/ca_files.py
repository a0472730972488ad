"""The CA's directory: made by ``metalmesh ca init``, read by the control plane.

``root-cert.pem``, ``issuing-cert.pem`` (with intermediates, leaf first) and ``issuing-key.pem``;
the root's key is in the directory given for it, which may be on another machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metalmesh.errors import CertificateError
from metalmesh.pki.ca import (
    CertificateAuthority,
    certificate_to_pem,
    load_authority,
    make_issuing,
    make_root,
    parse_certificates,
)
from metalmesh.pki.keys import key_to_pem, make_key, parse_key
from metalmesh.service.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from cryptography import x509

ROOT_CERT: Final = "root-cert.pem"
ROOT_KEY: Final = "root-key.pem"
ISSUING_CERT: Final = "issuing-cert.pem"
ISSUING_KEY: Final = "issuing-key.pem"
CRL: Final = "crl.pem"
_MODE_CERT: Final = 0o644
_MODE_KEY: Final = 0o600


@dataclass(frozen=True, slots=True)
class CaPaths:
    """Where the files are; ``root_dir`` holds the root's key only."""

    directory: Path
    root_dir: Path

    @property
    def root_cert(self) -> Path:
        """The trusted roots."""
        return self.directory / ROOT_CERT

    @property
    def root_key(self) -> Path:
        """The root's key; not needed by the control plane."""
        return self.root_dir / ROOT_KEY

    @property
    def issuing_cert(self) -> Path:
        """The issuing certificate, intermediates after it."""
        return self.directory / ISSUING_CERT

    @property
    def issuing_key(self) -> Path:
        """The issuing certificate's key."""
        return self.directory / ISSUING_KEY

    @property
    def crl(self) -> Path:
        """The revocation lists."""
        return self.directory / CRL


def plan_init(paths: CaPaths) -> list[Path]:
    """The files ``ca init`` would write; nothing to do when the authority is complete."""
    root = [path for path in (paths.root_cert, paths.root_key) if not path.exists()]
    issuing = [path for path in (paths.issuing_cert, paths.issuing_key) if not path.exists()]
    if paths.root_cert.exists() and not issuing:
        return []  # the root's key may well be elsewhere: it is not needed any more
    if len(root) == 1:
        present = paths.root_key if paths.root_key.exists() else paths.root_cert
        raise CertificateError(
            f"{root[0]} is missing while {present} exists; restore it, or move both away to start "
            "a new root"
        )
    if len(issuing) == 1:
        raise CertificateError(
            f"{issuing[0]} is missing while its other half exists; restore it, or move the other "
            "half away to issue a new pair"
        )
    if root and not issuing:
        raise CertificateError(
            f"{paths.issuing_cert} exists without its root; restore {paths.root_cert}"
        )
    return [*root, *issuing]


def init_ca(paths: CaPaths, trust_domain: str, now: datetime) -> list[Path]:
    """Make what is missing; return the files written. Keys are written before certificates."""
    planned = plan_init(paths)
    if not planned:
        return []
    for directory in (paths.directory, paths.root_dir):
        directory.mkdir(parents=True, exist_ok=True)
    if paths.root_cert in planned:
        root_key = make_key()
        root = make_root(trust_domain, root_key, now)
        write_atomic(paths.root_key, key_to_pem(root_key).encode(), _MODE_KEY)
        write_atomic(paths.root_cert, certificate_to_pem(root).encode(), _MODE_CERT)
    renew_issuing(paths, trust_domain, now)
    return planned


def renew_issuing(paths: CaPaths, trust_domain: str, now: datetime) -> None:
    """Issue a new issuing pair from the root, replacing the one in place."""
    root_key = parse_key(_read(paths.root_key), str(paths.root_key))
    root = parse_certificates(_read(paths.root_cert), str(paths.root_cert))[0]
    if root.public_key() != root_key.public_key():
        raise CertificateError(
            f"{paths.root_key} does not belong to the first certificate of {paths.root_cert}"
        )
    key = make_key()
    cert = make_issuing(trust_domain, key, root, root_key, now)
    write_atomic(paths.issuing_key, key_to_pem(key).encode(), _MODE_KEY)
    write_atomic(paths.issuing_cert, certificate_to_pem(cert).encode(), _MODE_CERT)


def import_ca(paths: CaPaths, source: Path, now: datetime) -> dict[Path, bytes]:
    """What a given intermediate makes of the directory; files that would stay are left out.

    ``source`` has the files of Istio's secret ``cacerts``. They are checked as a whole: nothing
    is to be written of what the control plane would not take.
    """
    root, chain, key = (
        _read(source / name) for name in ("root-cert.pem", "cert-chain.pem", "ca-key.pem")
    )
    issuing = parse_certificates(_read(source / "ca-cert.pem"), str(source / "ca-cert.pem"))[0]
    links = parse_certificates(chain, str(source / "cert-chain.pem"))
    if links[0] != issuing:
        links = (issuing, *links)
    roots = parse_certificates(root, str(source / "root-cert.pem"))
    load_authority(roots, links, parse_key(key, str(source / "ca-key.pem")), now)
    wanted = {
        paths.issuing_key: key,
        paths.issuing_cert: "".join(map(certificate_to_pem, links)).encode(),
        paths.root_cert: "".join(map(certificate_to_pem, roots)).encode(),
    }
    return {
        path: data
        for path, data in wanted.items()
        if not path.exists() or path.read_bytes() != data
    }


def write_imported(files: Mapping[Path, bytes]) -> None:
    """Write what :func:`import_ca` said."""
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, _MODE_KEY if path.name == ISSUING_KEY else _MODE_CERT)


def read_authority(
    directory: Path, now: datetime, environ: Mapping[str, str] | None = None
) -> CertificateAuthority:
    """Load the authority; the key may be a systemd credential instead of a file."""
    values = os.environ if environ is None else environ
    key_path = directory / ISSUING_KEY
    credentials = values.get("CREDENTIALS_DIRECTORY", "")
    if credentials and (Path(credentials) / ISSUING_KEY).exists():
        key_path = Path(credentials) / ISSUING_KEY
    roots = read_certificates(directory / ROOT_CERT)
    chain = read_certificates(directory / ISSUING_CERT)
    key = parse_key(_read(key_path), str(key_path))
    return load_authority(roots, chain, key, now)


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """Read a file of PEM certificates."""
    return parse_certificates(_read(path), str(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(
            f"{path}: {error.strerror}; make the CA with metalmesh ca init"
        ) from error
