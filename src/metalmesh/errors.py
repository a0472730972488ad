"""The exception tree of metalmesh.

::

    MetalmeshError
    ├── ConfigError          a configuration file or option is wrong
    ├── ResourceError        a mesh resource (YAML object) is wrong: file, object, field, remedy
    ├── IdentityError        a SPIFFE identity is malformed or not allowed
    ├── TokenError           a join or node token is malformed, expired, used or foreign
    ├── CertificateError     a certificate or key cannot be made, parsed or trusted
    ├── StoreError           the resource store cannot be read or written
    ├── ProtocolError        a peer broke a wire protocol (HBONE, ZDS, xDS)
    ├── NetworkError         netlink, nftables or a network namespace refused an operation
    │   └── CaptureError     what redirects a workload was refused: it would talk in the clear
    └── PolicyDeniedError    a policy refused a connection; names the deciding rule

Every message names the object, what is wrong with it and what to do about it.
"""

from __future__ import annotations


class MetalmeshError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(MetalmeshError):
    """A configuration file or option is wrong."""


class ResourceError(MetalmeshError):
    """A mesh resource is wrong.

    ``source`` is the file (or ``-``), ``obj`` is ``Kind namespace/name``, ``field`` the dotted
    path below the object (empty when the object as a whole is meant).
    """

    def __init__(self, source: str, obj: str, field: str, message: str) -> None:
        self.source = source
        self.obj = obj
        self.field = field
        self.message = message
        where = ": ".join(part for part in (source, obj, field) if part)
        super().__init__(f"{where}: {message}")


class IdentityError(MetalmeshError):
    """A SPIFFE identity is malformed or not allowed here."""


class TokenError(MetalmeshError):
    """A join or node token is malformed, expired, already used or issued by somebody else."""


class CertificateError(MetalmeshError):
    """A certificate, key or signing request cannot be made, parsed or trusted."""


class StoreError(MetalmeshError):
    """The resource store cannot be read or written."""


class ProtocolError(MetalmeshError):
    """A peer broke a wire protocol."""


class NetworkError(MetalmeshError):
    """Netlink, nftables or a network namespace refused an operation."""


class CaptureError(NetworkError):
    """What redirects a workload was refused: it would talk in the clear."""


class PolicyDeniedError(MetalmeshError):
    """A policy refused a connection; the message is the access log's ``error`` text."""
