"""The nft texts under ``tests/golden/nft``: file name -> what renders it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from metalmesh.render.redirection import (
    RedirectionConfig,
    render_redirection,
    render_redirection_removal,
)


def _redirection(**options: object) -> Callable[[], str]:
    return lambda: render_redirection(RedirectionConfig(**options))


CASES: Final[dict[str, Callable[[], str]]] = {
    "redirection-default.nft": _redirection(),
    "redirection-ipv4-only.nft": _redirection(ipv6=False),
    "redirection-dns-capture.nft": _redirection(dns_capture=True),
    "redirection-dns-capture-ipv4-only.nft": _redirection(dns_capture=True, ipv6=False),
    "redirection-bypass-inbound.nft": _redirection(bypass_inbound=True),
    "redirection-virtual-interfaces.nft": _redirection(virtual_interfaces=("tap0", "docker0")),
    "redirection-removal.nft": render_redirection_removal,
}
