"""Recording what crosses a link, and asking the recording for proofs.

tcpdump records (large buffer, immediate mode: nothing is left in a buffer at the end). A frame of
our own with a random number is sent over the link before and after: the first one arriving shows
that the recorder sees this link, the last one that it has written everything before it. A capture
that recorded no packet, or lost one, is an error and never a proof of absence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from tests.support import hbone, netns, packets, scapy_tls, tls13
from tests.support.packets import Packet, Stream
from tests.support.waits import WAITS, wait_until

ETHERTYPE_SENTINEL: Final = 0x88B5
"""IEEE 802 local experimental ethertype: no host acts on it."""
_DROPPED: Final = re.compile(r"^(\d+) packets? dropped by kernel", re.MULTILINE)


class BlindCaptureError(AssertionError):
    """The recording cannot prove anything: it saw nothing, or missed something."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A place to capture: an interface in the network namespace at this path."""

    netns: Path
    interface: str

    def __str__(self) -> str:
        return f"{self.netns.name}:{self.interface}"


class Capture:
    """A recording; its questions can be asked after the ``with`` block has ended."""

    def __init__(self, link: Link, path: Path) -> None:
        self.link = link
        self.path = path
        """The pcap file."""

    @functools.cached_property
    def packets(self) -> list[Packet]:
        """Every IP packet recorded."""
        return packets.read_packets(self.path)

    @functools.cached_property
    def streams(self) -> list[Stream]:
        """Both directions of every TCP connection recorded."""
        return packets.tcp_streams(self.packets)

    def between(self, some: Collection[str], others: Collection[str]) -> list[Packet]:
        """Packets from one of some addresses to one of the others, or back."""
        return [
            packet
            for packet in self.packets
            if (packet.source.address in some and packet.destination.address in others)
            or (packet.source.address in others and packet.destination.address in some)
        ]

    def ports_between(self, some: Collection[str], others: Collection[str]) -> set[str]:
        """Which services were talked to between these addresses, as ``{"tcp/15008"}``."""
        return packets.service_ports(self.between(some, others))

    def plaintext_contains(self, marker: bytes) -> bool:
        """Whether the marker crossed the link in clear, in one packet or over several."""
        frames = packets.raw_frames(self.path)
        return any(marker in frame for frame in frames) or any(
            marker in stream.data for stream in self.streams
        )

    def tls_handshakes(self, keylog: str) -> list[tls13.TlsConnection]:
        """HBONE connections seen from their SYN on, decrypted.

        scapy decrypts and an implementation of our own does, too; they have to agree.
        """
        ours = tls13.decrypt(self.streams, keylog)
        theirs = scapy_tls.decrypt(self.path, keylog)
        for connection in ours:
            scapy_tls.cross_check(connection, theirs)
        return ours

    def hbone_requests(self, keylog: str) -> list[dict[str, str]]:
        """Header fields of every HTTP/2 request in the decrypted connections."""
        return [
            request
            for connection in self.tls_handshakes(keylog)
            for request in hbone.requests(connection.client_data)
        ]


Recorder = Callable[..., contextlib.AbstractContextManager[Capture]]
"""``with record(link, "tcp") as recording``: see the fixture ``record``."""


@contextlib.contextmanager
def capture(link: Link, expression: str = "", *, directory: Path) -> Iterator[Capture]:
    """Record a link during the block. ``expression`` is a tcpdump filter (everything if empty).

    Raises BlindCaptureError at the end when nothing was recorded or the kernel dropped packets.
    The recording stays in the directory.
    """
    if shutil.which("tcpdump") is None:
        raise RuntimeError("tcpdump is not installed on this machine; apt-get install tcpdump")
    path = directory / f"{link.netns.name}-{link.interface}-{secrets.token_hex(3)}.pcap"
    process = _start(link, expression, path)
    try:
        _send_sentinel(link, path, process)
        yield Capture(link, path)
        _send_sentinel(link, path, process)
    finally:
        said = _stop(process)
    lost = _DROPPED.search(said)
    if lost is None or int(lost[1]):
        raise BlindCaptureError(f"capture on {link} lost packets: {said.strip()}")
    if not packets.read_packets(path):
        raise BlindCaptureError(f"capture on {link} ({expression!r}) recorded no packet at all")


def _start(link: Link, expression: str, path: Path) -> subprocess.Popen[bytes]:
    command = (
        *("tcpdump", "-i", link.interface, "-n", "-U", "--immediate-mode", "-B", "32768"),
        *("-s", "0", "-Z", "root", "-w", str(path)),
        f"ether proto {ETHERTYPE_SENTINEL} or ({expression})" if expression else "",
    )
    arguments = [part for part in command if part]
    return netns.in_netns(
        link.netns,
        lambda: subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL),
    )


def _stop(process: subprocess.Popen[bytes]) -> str:
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=WAITS["capture"].seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
    return said.decode(errors="replace")


def _send_sentinel(link: Link, path: Path, process: subprocess.Popen[bytes]) -> None:
    """Send a frame of our own over the link and wait until the recorder has written it."""
    number = secrets.token_bytes(16)
    frame = b"\xff" * 6 + b"\x02" + bytes(5) + ETHERTYPE_SENTINEL.to_bytes(2, "big") + number
    padded = frame.ljust(60, b"\0")
    sender = netns.in_netns(link.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    sent: list[int] = []

    def written() -> bool:
        if process.poll() is not None:
            raise BlindCaptureError(f"tcpdump on {link} ended: {_stop(process)}")
        size = path.stat().st_size if path.exists() else 0
        if size >= 24 and not sent:  # the file header shows that tcpdump is listening
            sender.sendto(padded, (link.interface, 0))
            sent.append(size)
        return bool(sent) and number in _tail(path, sent[0])

    with sender:
        wait_until(written, WAITS["capture"], what=f"capture on {link}")


def _tail(path: Path, offset: int) -> bytes:
    with path.open("rb") as recording:
        recording.seek(offset)
        return recording.read()
