"""Ask a service of this machine on its own port."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Final

from metalmesh.errors import MetalmeshError

TIMEOUT_SECONDS: Final = 30.0
#: never by way of a proxy that the environment names
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(port: int, path: str, unit: str, *, method: str = "GET") -> str:
    """The body of the answer of the service ``unit`` on this machine."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise MetalmeshError(f"{unit}: {path}: {error.read().decode().strip()}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise MetalmeshError(
            f"{unit} does not answer on port {port} of this machine ({reason}); is the unit "
            "active here? --host NAME asks another machine of the inventory"
        ) from error
