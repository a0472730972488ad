"""What changes without us: files below a directory (inotify), a namespace's network (netlink).

Both give a descriptor to wait on and a ``drain``; the content of the events does not matter, the
caller looks at the whole again. A lost event (queue overflow) counts as an event.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

from metalmesh.errors import NetworkError, StoreError
from metalmesh.net.netns import run_in_netns

if TYPE_CHECKING:
    from pathlib import Path

_IN_CLOSE_WRITE: Final = 0x8
_IN_MOVED: Final = 0xC0
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SOCKET_FLAGS: Final = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_READ_BYTES: Final = 65536

_NETLINK_NETFILTER: Final = 12
_NFT_GROUP: Final = 1 << 6  # NFNLGRP_NFTABLES
#: links, addresses, routes and rules of both families (RTMGRP_*, RTNLGRP_IPV6_RULE)
_ROUTE_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18


class DirectoryWatch:
    """Files that appear, change or go in some directories (not below them)."""

    def __init__(self, *directories: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_FLAGS)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise StoreError(f"inotify is not available: {os.strerror(code)}")
        mask = _IN_CLOSE_WRITE | _IN_MOVED | _IN_CREATE | _IN_DELETE
        for directory in directories:
            if libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
                code = ctypes.get_errno()
                os.close(self._fd)
                raise StoreError(f"{directory} cannot be watched: {os.strerror(code)}")

    def fileno(self) -> int:
        """Readable when something changed."""
        return int(self._fd)

    def drain(self) -> None:
        """Forget what was reported."""
        try:
            while os.read(self._fd, _READ_BYTES):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


class NetworkWatch:
    """Links, addresses, routes, rules and nft tables of one network namespace."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self.sockets = (
            _open_sockets() if netns_fd is None else run_in_netns(netns_fd, _open_sockets)
        )

    def drain(self) -> None:
        """Forget what was reported."""
        for sock in self.sockets:
            try:
                while sock.recv(_READ_BYTES):
                    pass
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def close(self) -> None:
        """Stop watching."""
        for sock in self.sockets:
            sock.close()


def _open_sockets() -> tuple[socket.socket, socket.socket]:
    try:
        return (
            _open_socket(socket.NETLINK_ROUTE, _ROUTE_GROUPS),
            _open_socket(_NETLINK_NETFILTER, _NFT_GROUP),
        )
    except OSError as error:
        raise NetworkError(
            f"changes of the network cannot be watched: {error.strerror}; the process needs "
            "CAP_NET_ADMIN and the kernel nf_tables"
        ) from error


def _open_socket(protocol: int, groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | _SOCKET_FLAGS, protocol)
    sock.bind((0, groups))
    return sock
