"""sd_notify and the fd store, against a real datagram socket."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from metalmesh.service.systemd import Notifier, received_fds


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


@pytest.fixture
def notifier(manager: socket.socket) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname()})


def test_without_a_manager_nothing_is_sent() -> None:
    notifier = Notifier({})
    notifier.ready("fine")
    assert not notifier.enabled


def test_states_are_assignments_by_line(notifier: Notifier, manager: socket.socket) -> None:
    notifier.ready("two workloads")
    notifier.status("three workloads")
    notifier.watchdog()
    notifier.stopping()
    assert [manager.recv(4096) for _ in range(4)] == [
        b"READY=1\nSTATUS=two workloads",
        b"STATUS=three workloads",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_descriptors_go_to_the_store_by_name(notifier: Notifier, manager: socket.socket) -> None:
    with socket.socket() as stored:
        notifier.store("listener-15001-42", [stored.fileno()])
        data, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(4))
        assert data == b"FDSTORE=1\nFDNAME=listener-15001-42"
        fds = array.array("i")
        fds.frombytes(ancillary[0][2])
        assert os.fstat(fds[0]).st_ino == os.fstat(stored.fileno()).st_ino
        os.close(fds[0])
    notifier.unstore("listener-15001-42")
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=listener-15001-42"


@pytest.mark.parametrize("name", ["", "a:b", "ü", "a\nb", "x" * 256])
def test_names_systemd_would_refuse_are_refused(notifier: Notifier, name: str) -> None:
    with pytest.raises(ValueError, match="fd store name"):
        notifier.store(name, [0])


def test_vanished_manager_is_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_is_fed_twice_per_limit(environ: dict[str, str], expected: float | None) -> None:
    assert Notifier(environ).watchdog_interval_seconds() == expected


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": str(os.getpid())}]
)
def test_descriptors_for_others_are_left_alone(environ: dict[str, str]) -> None:
    assert received_fds(environ) == []


def test_descriptors_come_with_their_names() -> None:
    """In a process of its own: numbers from 3 on are what sd_listen_fds(3) fixes."""
    import subprocess
    import sys

    code = (
        "import os; os.environ['LISTEN_PID'] = str(os.getpid());"
        "from metalmesh.service.systemd import received_fds;"
        "print(received_fds(), os.get_inheritable(3))"
    )
    read, write = os.pipe()

    def as_systemd() -> None:
        os.dup2(read, 10), os.dup2(write, 11)
        os.dup2(10, 3), os.dup2(11, 4)

    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "first", "PYTHONPATH": "src"},
        preexec_fn=as_systemd,
        close_fds=False,
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(read)
    os.close(write)
    assert result.stdout.strip() == "[('first', 3), ('unknown', 4)] False"
