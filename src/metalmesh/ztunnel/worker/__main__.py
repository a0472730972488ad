"""``python -m metalmesh.ztunnel.worker --fd N``: a data worker on an inherited socket."""

from __future__ import annotations

import signal
import socket
import sys

from metalmesh.ztunnel.ipc import Channel
from metalmesh.ztunnel.worker.app import Worker


def main(arguments: list[str]) -> int:
    """Run a worker; ``--fd`` names the end of the pipe that main has left open for us."""
    if len(arguments) != 2 or arguments[0] != "--fd" or not arguments[1].isdigit():
        sys.stderr.write("usage: python -m metalmesh.ztunnel.worker --fd N\n")
        return 2
    # Main decides when we stop: a signal to the whole unit must not cut connections short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(Channel(socket.socket(fileno=int(arguments[1])))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
