"""A new root without a broken connection, in three stages (docs/decisions/0014).

::

              root-cert.pem      signs        root's key        next root's key
    single    [old]              below old    root-key.pem      -
    prepare   [old, new]         below old    root-key.pem      next-root-key.pem
    switch    [new, old]         below new    root-key.pem      -
    finish    [new]              below new    root-key.pem      -

Each stage may be repeated: what is done already is left alone, what a crash cut off is completed.
The files say where a rotation is; nothing else is kept. Between the stages every node must have
taken over what the last one made, which is the business of whoever calls us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from metalmesh.controlplane.ca_files import read_certificates, renew_issuing
from metalmesh.errors import CertificateError
from metalmesh.pki.ca import certificate_to_pem, is_issued, make_root
from metalmesh.pki.keys import key_to_pem, make_key, parse_key
from metalmesh.service.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from cryptography import x509

    from metalmesh.controlplane.ca_files import CaPaths
    from metalmesh.pki.keys import SigningKey

NEXT_ROOT_KEY: Final = "next-root-key.pem"
STAGES: Final = ("prepare", "switch", "finish")
_MODE_CERT: Final = 0o644
_MODE_KEY: Final = 0o600


def rotate_root(paths: CaPaths, stage: str, trust_domain: str, now: datetime) -> list[Path]:
    """Do one stage; return the files that were written, none when it was done before."""
    if stage == "prepare":
        return _prepare(paths, trust_domain, now)
    if stage == "switch":
        return _switch(paths, trust_domain, now)
    return _finish(paths)


def _prepare(paths: CaPaths, trust_domain: str, now: datetime) -> list[Path]:
    """A next root beside the old one; everybody is to trust both."""
    roots = read_certificates(paths.root_cert)
    next_key = _read_next_key(paths)
    if next_key is None and len(roots) > 1:
        return []  # switched already: there is a rotation to be finished
    _own_key(paths)  # a CA whose root is elsewhere cannot be rotated here: say so now
    written = []
    if next_key is None:
        next_key = make_key()
        path = paths.root_dir / NEXT_ROOT_KEY
        write_atomic(path, key_to_pem(next_key).encode(), _MODE_KEY)
        written.append(path)
    if _root_of(roots, next_key) is None:
        _write_roots(paths, [*roots, make_root(trust_domain, next_key, now)])
        written.append(paths.root_cert)
    return written


def _switch(paths: CaPaths, trust_domain: str, now: datetime) -> list[Path]:
    """The next root becomes the root, and signs a new issuing certificate."""
    roots = read_certificates(paths.root_cert)
    key = _read_next_key(paths)
    if key is None:
        if len(roots) > 1:
            return []
        raise CertificateError(f"{paths.root_cert} has one root; do the stage prepare first")
    root = _root_of(roots, key)
    if root is None:
        raise CertificateError(
            f"{paths.root_cert} lacks the root of {NEXT_ROOT_KEY}; repeat the stage prepare"
        )
    # the old issuing pair stays valid until the new one is complete: the control plane takes
    # over nothing that does not fit together
    write_atomic(paths.root_key, key_to_pem(key).encode(), _MODE_KEY)
    _write_roots(paths, [root, *(other for other in roots if other != root)])
    renew_issuing(paths, trust_domain, now)
    (paths.root_dir / NEXT_ROOT_KEY).unlink()
    return [paths.root_key, paths.root_cert, paths.issuing_key, paths.issuing_cert]


def _finish(paths: CaPaths) -> list[Path]:
    """Nobody uses the old root any more: trust the new one alone."""
    roots = read_certificates(paths.root_cert)
    if _read_next_key(paths) is not None:
        raise CertificateError("the next root is prepared but not in use; do the stage switch")
    if len(roots) == 1:
        return []
    issuing = read_certificates(paths.issuing_cert)[0]
    if not is_issued(issuing, roots[0]):
        raise CertificateError(
            f"{paths.issuing_cert} is not signed by the first root of {paths.root_cert}; repeat "
            "the stage switch"
        )
    _write_roots(paths, roots[:1])
    return [paths.root_cert]


def _read_next_key(paths: CaPaths) -> SigningKey | None:
    path = paths.root_dir / NEXT_ROOT_KEY
    return parse_key(path.read_bytes(), str(path)) if path.exists() else None


def _own_key(paths: CaPaths) -> SigningKey:
    try:
        return parse_key(paths.root_key.read_bytes(), str(paths.root_key))
    except OSError as error:
        raise CertificateError(
            f"{paths.root_key}: {error.strerror}; rotate where the root's key is, or give its "
            "directory with --root-dir"
        ) from error


def _root_of(roots: Sequence[x509.Certificate], key: SigningKey) -> x509.Certificate | None:
    return next((root for root in roots if root.public_key() == key.public_key()), None)


def _write_roots(paths: CaPaths, roots: Sequence[x509.Certificate]) -> None:
    write_atomic(paths.root_cert, "".join(map(certificate_to_pem, roots)).encode(), _MODE_CERT)
