"""Sockets and namespaces of the data path, on a real kernel."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from metalmesh.errors import NetworkError
from metalmesh.net import netns, sockets
from tests.support.netns import Netns, netns_pair
from tests.support.waits import WAITS


def netns_inode(path: str = "/proc/thread-self/ns/net") -> int:
    """Which namespace the calling thread is in."""
    return os.stat(path).st_ino  # noqa: PTH116 - of a magic link


@pytest.fixture
def pair():
    with netns_pair() as pair:
        yield pair


def test_thread_enters_and_comes_back(pair: tuple[Netns, Netns]) -> None:
    home, fd = netns_inode(), netns.open_netns(pair[0].path)
    inside = os.fstat(fd).st_ino
    with netns.in_netns(fd):
        assert netns_inode() == inside
    assert netns_inode() == home
    with pytest.raises(KeyError), netns.in_netns(fd):
        raise KeyError
    assert netns_inode() == home
    os.close(fd)


def test_function_runs_inside_and_the_caller_stays(pair: tuple[Netns, Netns]) -> None:
    home, fd = netns_inode(), netns.open_netns(pair[0].path)
    assert netns.run_in_netns(fd, netns_inode) == os.fstat(fd).st_ino
    with pytest.raises(ZeroDivisionError):
        netns.run_in_netns(fd, lambda: 1 // 0)
    assert netns_inode() == home
    os.close(fd)


def test_current_netns_is_entered_once_and_forgotten(pair: tuple[Netns, Netns]) -> None:
    """A closed descriptor's number may come back for another namespace."""

    def work() -> None:
        current = netns.CurrentNetns()
        fds = [netns.open_netns(item.path) for item in pair]
        for fd in (*fds, *fds):
            current.enter(fd)
            current.enter(fd)
            assert netns_inode() == os.fstat(fd).st_ino
        current.forget(fds[1])
        os.close(fds[1])
        again = netns.open_netns(pair[0].path)
        assert again == fds[1]
        current.enter(again)
        assert netns_inode() == os.fstat(fds[0]).st_ino
        for fd in (fds[0], again):
            os.close(fd)

    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # shown below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


def test_missing_namespace_is_named() -> None:
    with pytest.raises(NetworkError, match="mm-no-such-netns"):
        netns.open_netns("/run/netns/mm-no-such-netns")
    with pytest.raises(NetworkError, match="setns refused"):
        netns.setns(0)


def test_listener_is_dual_stack_and_its_connections_inherit_options(
    pair: tuple[Netns, Netns],
) -> None:
    one, other = pair
    listener = one.do(lambda: sockets.make_listener(15001))
    assert listener.getsockopt(socket.SOL_SOCKET, sockets.SO_MARK) == 0x539
    with other.connect(one.address, 15001) as client:
        listener.settimeout(WAITS["traffic"].seconds)
        accepted = sockets.accept(listener)
        assert accepted is not None
        sock, address, port = accepted
        assert (address, port) == client.getsockname()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 180
        assert sockets.original_destination(sock) == (one.address, 15001)
        sock.close()
    listener.settimeout(0)
    assert sockets.accept(listener) is None
    second = one.do(lambda: sockets.make_listener(15001))  # a successor takes over
    second.close()
    listener.close()


def test_listener_serves_ipv4_where_ipv6_is_off(pair: tuple[Netns, Netns]) -> None:
    one, other = pair
    one.run("sysctl", "-q", "net.ipv6.conf.all.disable_ipv6=1")
    listener = one.do(lambda: sockets.make_listener(15001))
    with other.connect(one.address, 15001):
        listener.settimeout(WAITS["traffic"].seconds)
        assert sockets.accept(listener) is not None
    listener.close()


def test_occupied_port_is_named(pair: tuple[Netns, Netns]) -> None:
    with pair[0].listen(15008, address="0.0.0.0"), pytest.raises(NetworkError, match="port 15008"):
        pair[0].do(lambda: sockets.make_listener(15008, address="0.0.0.0"))


def test_foreign_source_address_may_be_bound(pair: tuple[Netns, Netns]) -> None:
    """What the application sees as its client; answers to it need the mark's route."""
    one, _ = pair

    def dial() -> str:
        sock = sockets.upstream_socket(one.address, local=True)
        sockets.bind_source(sock, "192.0.2.55")
        name = sock.getsockname()[0]
        sock.close()
        return name

    assert one.do(dial) == "192.0.2.55"


def test_connecting_tells_at_once_on_the_same_host(pair: tuple[Netns, Netns]) -> None:
    one, _ = pair
    with one.listen(8080, address="0.0.0.0"):
        sock = one.do(lambda: sockets.upstream_socket(one.address))
        assert sockets.start_connect(sock, one.address, 8080)
        sock.close()
    refused = one.do(lambda: sockets.upstream_socket(one.address))
    with pytest.raises(ConnectionRefusedError):
        sockets.start_connect(refused, one.address, 8081)
    refused.close()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:a00:1", "::ffff:a00:1"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_addresses_are_canonical(text: str, canonical: str) -> None:
    assert sockets.canonical(text) == canonical
