"""Network settings of the namespace the calling thread is in (``/proc/sys/net``)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from metalmesh.errors import NetworkError

_ROOT: Final = Path("/proc/sys/net")


def exists(name: str) -> bool:
    """Whether the kernel has a setting (``ipv6/conf/all/forwarding``)."""
    return (_ROOT / name).exists()


def read(name: str) -> str:
    """The value of a setting."""
    try:
        return (_ROOT / name).read_text().strip()
    except OSError as error:
        raise NetworkError(f"/proc/sys/net/{name} cannot be read: {error.strerror}") from error


def ensure(name: str, value: str) -> bool:
    """Give a setting its value; return whether it had another."""
    if read(name) == value:
        return False
    try:
        (_ROOT / name).write_text(value)
    except OSError as error:
        raise NetworkError(
            f"/proc/sys/net/{name} cannot be set to {value}: {error.strerror}; the unit must not "
            "use ProtectKernelTunables=, and the process needs CAP_NET_ADMIN"
        ) from error
    return True


def children(name: str) -> list[str]:
    """Names below a setting's directory (``ipv6/conf`` -> all, default, eth0, ...)."""
    return sorted(path.name for path in (_ROOT / name).iterdir())
