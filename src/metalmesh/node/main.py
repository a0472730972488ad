"""Entry of the node agent's process."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
from typing import TYPE_CHECKING, Final

from metalmesh.node.agent import NodeAgent
from metalmesh.service import logs

if TYPE_CHECKING:
    from metalmesh.node.config import NodeConfig


#: glibc's mallopt(3) parameter for the number of allocation arenas
_M_ARENA_MAX: Final = -8


def run_agent(config: NodeConfig) -> int:
    """Run the agent until it is asked to stop."""
    logs.configure(config.log_level, config.log_format)
    # at debug they tell every netlink message and every short-lived event loop
    for library in ("pyroute2", "asyncio"):
        logging.getLogger(library).setLevel(logging.WARNING)

    _share_arena()

    async def serve() -> None:
        agent = NodeAgent(config)
        gc.freeze()  # what imports made lives for ever
        await agent.run()

    asyncio.run(serve())
    return 0


def _share_arena() -> None:
    """One heap for all threads: gRPC's would each keep some of their own (3 MB in all)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc has it, musl does not
        libc.mallopt(_M_ARENA_MAX, 1)
