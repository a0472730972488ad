"""The last act of a main process that hands over."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

from metalmesh.service.systemd import Notifier
from metalmesh.ztunnel import ipc
from metalmesh.ztunnel import messages as m
from metalmesh.ztunnel.handover import Estate, Incumbent


def test_worker_that_has_exited_meanwhile_is_left_out() -> None:
    """It had nothing to finish; the others are handed on, and then the unit."""
    ours, theirs = ipc.socket_pair()
    estate = Estate(
        descriptors=list,
        certificates=list,
        workloads=list,
        state=bytes,
        leave=list,
    )
    incumbent = Incumbent("/none", estate, Notifier({}))
    incumbent.channel, successor = ipc.Channel(ours), ipc.Channel(theirs)
    pipes = [ipc.socket_pair() for _ in range(2)]
    workers: list[Any] = [
        SimpleNamespace(pid=pid, channel=ipc.Channel(mine))
        for pid, (mine, _) in enumerate(pipes, start=1)
    ]
    workers[0].channel.close()
    asyncio.run(incumbent.hand_over(workers))
    received = successor.receive()
    assert [message for message, _ in received] == [m.Inherit(name="worker-2"), m.TakeOver()]
    for fd in (fd for _, fds in received for fd in fds):
        os.close(fd)
    for end in (successor, workers[1].channel, *(theirs for _, theirs in pipes)):
        end.close()
