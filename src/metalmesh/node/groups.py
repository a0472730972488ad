"""Groups of this machine by name."""

from __future__ import annotations

import grp

from metalmesh.errors import ConfigError


def group_id(name: str) -> int:
    """Number of the ztunnel's group; ConfigError when the machine has no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(
            f"ztunnel_group {name!r} does not exist on this machine; the role ztunnel makes it"
        ) from None
