"""Sockets of the data path: captured listeners, original destinations, transparent upstreams.

Every socket a proxy makes in a workload's netns carries mark 0x539, or the redirection rules
would send its traffic back to it (istio-facts 1.3 and 1.7). Options are set before ``listen``
and ``connect``; accepted sockets inherit TCP_NODELAY and keepalive from their listener, which
saves four system calls per connection. Sockets of connections are of the type that
:class:`socket.socket` is built on: making one costs a third.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import Final

from metalmesh.constants import MARK_FROM_PROXY
from metalmesh.errors import NetworkError

SO_MARK: Final = 36
SO_ORIGINAL_DST: Final = 80  # same number for IPv4 and IPv6 (linux/netfilter_ipv4.h, _ipv6.h)
IP_TRANSPARENT: Final = 19
IP_BIND_ADDRESS_NO_PORT: Final = 24
IPV6_TRANSPARENT: Final = 75

LISTEN_BACKLOG: Final = 1024
#: idle seconds, seconds between probes, probes
KEEPALIVE: Final = (180, 180, 9)

#: errors of ``bind`` and ``socket`` where an address family is switched off
NO_FAMILY: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_MAPPED: Final = "::ffff:"
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def canonical(address: str) -> str:
    """An IPv4 address that came in IPv6 clothes is IPv4; scope ids are dropped."""
    if address.startswith(_MAPPED) and "." in address:
        return address[len(_MAPPED) :]
    return address.partition("%")[0]


def make_listener(port: int, *, address: str = "", backlog: int = LISTEN_BACKLOG) -> socket.socket:
    """A non-blocking TCP listener in the current namespace, on every address by default.

    One dual-stack socket, which also serves IPv4 alone where IPv6 is switched off; a kernel
    without IPv6 gets an IPv4 socket. Transparency is best effort: it is
    needed for nothing but keeping the original addresses, which redirected sockets have anyway.
    """
    host = address or "::"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        if address:
            raise
        return make_listener(port, address="0.0.0.0", backlog=backlog)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK_FROM_PROXY)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        with suppress(OSError):
            set_transparent(listener)
        set_stream_options(listener)
        listener.bind((host, port))
        listener.listen(backlog)
        listener.settimeout(0)
    except OSError as error:
        listener.close()
        raise NetworkError(
            f"listener {host} port {port}: {error.strerror}; is another proxy in this network "
            "namespace, or CAP_NET_ADMIN missing?"
        ) from error
    return listener


def make_dns_listener(kind: int, address: str, port: int) -> socket.socket:
    """A non-blocking marked socket of the DNS proxy (SOCK_DGRAM or SOCK_STREAM) on loopback.

    NetworkError when it cannot be had; OSError EADDRNOTAVAIL or EAFNOSUPPORT passes: this
    namespace does not have the address family.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        # the service manager may hold the socket of before a moment longer
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK_FROM_PROXY)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(LISTEN_BACKLOG)
        sock.settimeout(0)
    except OSError as error:
        sock.close()
        if error.errno in NO_FAMILY:
            raise
        raise NetworkError(
            f"DNS proxy {address} port {port}: {error.strerror}; is another process listening "
            "there in this network namespace?"
        ) from error
    return sock


def set_stream_options(sock: socket.SocketType) -> None:
    """TCP_NODELAY and keepalive."""
    idle, interval, probes = KEEPALIVE
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)


def set_transparent(sock: socket.SocketType) -> None:
    """Let the socket use an address that is not ours (CAP_NET_ADMIN or CAP_NET_RAW)."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def accept(listener: socket.socket) -> tuple[socket.SocketType, str, int] | None:
    """One waiting connection, non-blocking, with its canonical peer; ``None`` if there is none.

    Raises OSError when this process is out of descriptors or memory.
    """
    try:
        # not `accept`: it wraps the descriptor in a second, slower object
        fd, peer = listener._accept()  # type: ignore[attr-defined] # noqa: SLF001
    except (BlockingIOError, ConnectionAbortedError):
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            raise
        return None  # the connection died in the queue (accept(2) passes network errors on)
    family = socket.AF_INET6 if len(peer) == 4 else socket.AF_INET
    sock = socket.SocketType(family, socket.SOCK_STREAM, 0, fd)
    sock.settimeout(0)
    return sock, canonical(peer[0]), peer[1]


def original_destination(sock: socket.SocketType) -> tuple[str, int]:
    """Where the client wanted to go before redirection; the local address if not redirected."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
        port, packed = struct.unpack_from("!2xH4s", raw)
        return socket.inet_ntop(socket.AF_INET, packed), port
    except OSError:  # not an IPv4 flow, or not redirected
        pass
    if sock.family == socket.AF_INET6:
        try:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            port, packed = struct.unpack_from("!2xH4x16s", raw)
            return canonical(socket.inet_ntop(socket.AF_INET6, packed)), port
        except OSError:  # not redirected
            pass
    name = sock.getsockname()
    return canonical(name[0]), name[1]


def upstream_socket(address: str, *, local: bool = False) -> socket.SocketType:
    """A non-blocking marked TCP socket of the family of ``address``, in the current namespace.

    ``local`` says the other end is in this namespace, too: its death is told without keepalive.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.SocketType(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK_FROM_PROXY)
        if local:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            set_stream_options(sock)
    except OSError:
        sock.close()
        raise
    return sock


def bind_source(sock: socket.SocketType, address: str) -> None:
    """Make a connection come from ``address``, which is another host's; the port is chosen late.

    IP_BIND_ADDRESS_NO_PORT: the port is picked by ``connect``, so 28000 ports suffice per
    destination and not in all.
    """
    set_transparent(sock)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind((address, 0))


def start_connect(sock: socket.SocketType, address: str, port: int) -> bool:
    """Begin to connect; true if the connection is there already, OSError if it is refused."""
    code = sock.connect_ex((address, port))
    if code == errno.EINPROGRESS:
        # On the same host the handshake is over when the first call returns; asking again
        # saves an epoll registration and a turn of the loop.
        code = sock.connect_ex((address, port))
    if code in (0, errno.EISCONN):
        return True
    if code in (errno.EALREADY, errno.EINPROGRESS):
        return False
    raise OSError(code, os.strerror(code))


def finish_connect(sock: socket.SocketType) -> None:
    """The socket became writable: OSError if the connection failed."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def reset_on_close(sock: socket.SocketType) -> None:
    """Make ``close`` send RST instead of FIN: the application must not take it for the end."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
