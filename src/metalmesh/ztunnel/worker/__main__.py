"""``python -m metalmesh.ztunnel.worker --fd N``: a data worker on an inherited socket."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from typing import Final

from metalmesh.ztunnel.ipc import Channel

#: TLS 1.3 suites offered and accepted (istio-facts 2.3); the one that costs less comes first.
#: Python before 3.15 has no call for it, so OpenSSL reads it from its configuration, which it
#: does once, when ``ssl`` is first imported.
_OPENSSL_CONFIG: Final = """\
openssl_conf = metalmesh
[metalmesh]
ssl_conf = tls
[tls]
system_default = suites
[suites]
CipherString = DEFAULT@SECLEVEL=2
Ciphersuites = TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384
"""


def configure_openssl() -> None:
    """Set the suites, unless the administrator has an OpenSSL configuration of their own."""
    if "OPENSSL_CONF" in os.environ:
        return
    fd = os.memfd_create("openssl.cnf", 0)
    os.write(fd, _OPENSSL_CONFIG.encode())
    os.environ["OPENSSL_CONF"] = f"/proc/self/fd/{fd}"


def main(arguments: list[str]) -> int:
    """Run a worker; ``--fd`` names the end of the pipe that main has left open for us."""
    if len(arguments) != 2 or arguments[0] != "--fd" or not arguments[1].isdigit():
        sys.stderr.write("usage: python -m metalmesh.ztunnel.worker --fd N\n")
        return 2
    # Main decides when we stop: a signal to the whole unit must not cut connections short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    configure_openssl()
    from metalmesh.ztunnel.worker.app import Worker  # imports ssl: only now

    Worker(Channel(socket.socket(fileno=int(arguments[1])))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
